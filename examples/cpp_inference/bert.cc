#include "bert.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "activations.h"
#include "json_file.h"
#include "matmul.h"

namespace example {
namespace {

// Batches are spread over the program's threads, so each call stays on its own.
constexpr normcore::Context kThisThread{.threads = 1};

template <class T>
void expect(const nlohmann::json& config, const char* key, const T& expected) {
  if (config.at(key) == expected) return;
  throw std::runtime_error(std::string("the model has ") + key + " " + config.at(key).dump() +
                           ", expected " + nlohmann::json(expected).dump());
}

}  // namespace

// ---- loading

Bert::Bert(const std::filesystem::path& model_dir) : file_(model_dir / "model.safetensors") {
  const nlohmann::json config = read_json(model_dir / "config.json");
  expect(config, "model_type", "bert");
  expect(config, "hidden_act", "gelu");
  expect(config, "position_embedding_type", "absolute");
  const nlohmann::json pooling = read_json(model_dir / "1_Pooling" / "config.json");
  expect(pooling, "pooling_mode_mean_tokens", true);
  width_ = config.at("hidden_size");
  heads_ = config.at("num_attention_heads");
  intermediate_width_ = config.at("intermediate_size");
  eps_ = config.at("layer_norm_eps");
  if (heads_ < 1 || width_ % heads_ != 0) {
    throw std::runtime_error("the model has " + std::to_string(heads_) +
                             " heads, expected a divisor of its width " + std::to_string(width_));
  }

  words_ = file_.get<float>("embeddings.word_embeddings.weight", {-1, width_});
  positions_ = file_.get<float>("embeddings.position_embeddings.weight", {-1, width_});
  type_ = file_.get<float>("embeddings.token_type_embeddings.weight", {-1, width_});
  embedding_norm_ = load_norm("embeddings.LayerNorm");
  const int count = config.at("num_hidden_layers");
  layers_.resize(count);
  for (int i = 0; i < count; ++i) {
    const std::string name = "encoder.layer." + std::to_string(i) + ".";
    Layer& layer = layers_[i];
    for (const char* part : {"query", "key", "value"}) {
      const Linear linear = load_linear(name + "attention.self." + part, width_, width_);
      layer.qkv_weight.insert(layer.qkv_weight.end(), linear.weight.begin(), linear.weight.end());
      layer.qkv_bias.insert(layer.qkv_bias.end(), linear.bias.begin(), linear.bias.end());
    }
    layer.qkv = {layer.qkv_weight, layer.qkv_bias};
    layer.attention_output = load_linear(name + "attention.output.dense", width_, width_);
    layer.attention_norm = load_norm(name + "attention.output.LayerNorm");
    layer.intermediate = load_linear(name + "intermediate.dense", intermediate_width_, width_);
    layer.output = load_linear(name + "output.dense", width_, intermediate_width_);
    layer.output_norm = load_norm(name + "output.LayerNorm");
  }
}

Bert::Linear Bert::load_linear(const std::string& name, std::ptrdiff_t out,
                               std::ptrdiff_t in) const {
  return {file_.get<float>(name + ".weight", {out, in}), file_.get<float>(name + ".bias", {out})};
}

Bert::LayerNorm Bert::load_norm(const std::string& name) const {
  return {file_.get<float>(name + ".weight", {width_}), file_.get<float>(name + ".bias", {width_})};
}

Bert::Workspace::Workspace(const Bert& bert, std::ptrdiff_t max_tokens)
    : max_tokens_(max_tokens),
      x_(max_tokens * bert.width_),
      y_(x_.size()),
      dense_(x_.size()),
      queries_keys_values_(3 * x_.size()),
      context_(x_.size()),
      intermediate_(max_tokens * bert.intermediate_width_),
      scores_(bert.max_length() * bert.max_length()) {}

// ---- inference

void Bert::embed(std::span<const int> ids, std::span<const std::ptrdiff_t> ends, float* embeddings,
                 Workspace& w) const {
  const std::ptrdiff_t tokens = std::ssize(ids), sentences = std::ssize(ends);
  if (tokens > w.max_tokens_) {
    throw std::invalid_argument("a batch has " + std::to_string(tokens) +
                                " tokens, expected at most " + std::to_string(w.max_tokens_));
  }
  sum_embeddings(ids, ends, w.x_.data());
  normcore::LayerNormOptions options;
  options.eps = eps_;
  const normcore::Tensor x(w.x_.data(), {tokens, width_});
  normcore::layer_norm(x, {embedding_norm_.weight.data(), {width_}},
                       {embedding_norm_.bias.data(), {width_}}, x, options, {}, kThisThread);

  for (const Layer& layer : layers_) {
    apply(layer.qkv, w.x_.data(), tokens, w.queries_keys_values_.data());
    attend(ends, w);
    apply(layer.attention_output, w.context_.data(), tokens, w.dense_.data());
    add_and_norm(layer.attention_norm, tokens, w);
    apply(layer.intermediate, w.x_.data(), tokens, w.intermediate_.data());
    gelu(w.intermediate_.data(), tokens * intermediate_width_);
    apply(layer.output, w.intermediate_.data(), tokens, w.dense_.data());
    add_and_norm(layer.output_norm, tokens, w);
  }

  // The mean of a sentence's tokens, over its norm.
  normcore::MomentsOptions over_tokens;
  over_tokens.axes = normcore::Axes{0};
  std::ptrdiff_t begin = 0;
  for (std::ptrdiff_t s = 0; s < sentences; begin = ends[s++]) {
    normcore::MomentsOut pooled;
    pooled.mean = {embeddings + s * width_, {1, width_}};
    normcore::moments({w.x_.data() + begin * width_, {ends[s] - begin, width_}}, pooled,
                      over_tokens, kThisThread);
  }
  const normcore::Tensor y(embeddings, {sentences, width_});
  normcore::normalize(y, y, {}, kThisThread);
}

void Bert::sum_embeddings(std::span<const int> ids, std::span<const std::ptrdiff_t> ends,
                          float* x) const {
  std::ptrdiff_t token = 0;
  for (const std::ptrdiff_t end : ends) {
    const float* position = positions_.data();
    for (; token < end; ++token, position += width_, x += width_) {
      const float* word = words_.data() + ids[token] * width_;
      for (std::ptrdiff_t c = 0; c < width_; ++c) x[c] = word[c] + position[c] + type_[c];
    }
  }
}

void Bert::attend(std::span<const std::ptrdiff_t> ends, Workspace& w) const {
  const std::ptrdiff_t head_width = width_ / heads_;
  const float scale = 1 / std::sqrt(static_cast<float>(head_width));
  std::ptrdiff_t begin = 0;
  for (const std::ptrdiff_t end : ends) {
    const std::ptrdiff_t length = end - begin;
    const Matrix scores{w.scores_.data(), length, length, length};
    for (std::ptrdiff_t head = 0; head < heads_; ++head) {
      float* first = w.queries_keys_values_.data() + 3 * width_ * begin + head_width * head;
      const Matrix queries{first, length, head_width, 3 * width_};
      const Matrix keys{first + width_, length, head_width, 3 * width_};
      const Matrix values{first + 2 * width_, length, head_width, 3 * width_};
      matmul_transposed(queries, keys, scores);
      softmax(scores.data, length, length, scale);
      matmul(scores, values,
             {w.context_.data() + width_ * begin + head_width * head, length, head_width, width_});
    }
    begin = end;
  }
}

void Bert::apply(const Linear& linear, const float* x, std::ptrdiff_t tokens, float* y) const {
  const std::ptrdiff_t out = std::ssize(linear.bias), in = std::ssize(linear.weight) / out;
  linear_transposed({x, tokens, in, in}, {linear.weight.data(), out, in, in}, linear.bias.data(),
                    {y, tokens, out, out});
}

// x = layer_norm(x + dense): BERT normalizes behind its residual sums.
void Bert::add_and_norm(const LayerNorm& norm, std::ptrdiff_t tokens, Workspace& w) const {
  normcore::LayerNormOptions options;
  options.eps = eps_;
  options.residual = normcore::ConstTensor(w.x_.data(), {tokens, width_});
  options.h = normcore::Tensor(w.dense_.data(), {tokens, width_});  // over x: nobody needs either
  normcore::layer_norm({w.dense_.data(), {tokens, width_}}, {norm.weight.data(), {width_}},
                       {norm.bias.data(), {width_}}, {w.y_.data(), {tokens, width_}}, options, {},
                       kThisThread);
  std::swap(w.x_, w.y_);
}

}  // namespace example
