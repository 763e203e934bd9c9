// A BERT that embeds sentences, from a model folder of sentence-transformers: config.json and
// model.safetensors. The weights are shared by all threads; each has a workspace of its own, made
// once, and calls of normcore do not allocate.
//
// Sentences are packed one behind the other, without padding: matrix products and norms run over
// all tokens at once, only attention goes by sentence.
#pragma once

#include <normcore/normcore.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "safetensors.h"

namespace example {

class Bert {
 public:
  explicit Bert(const std::filesystem::path& model_dir);

  std::ptrdiff_t width() const { return width_; }
  int vocabulary_size() const { return static_cast<int>(words_.size() / width_); }
  int max_length() const { return static_cast<int>(positions_.size() / width_); }

  // Scratch memory of a thread, for batches of up to so many tokens.
  class Workspace {
   public:
    Workspace(const Bert& bert, std::ptrdiff_t max_tokens);

   private:
    friend class Bert;
    std::ptrdiff_t max_tokens_;
    std::vector<float> x_, y_, dense_, queries_keys_values_, context_, intermediate_, scores_;
  };

  // ids: the tokens of all sentences; ends: where in them each sentence ends.
  // embeddings: [sentences, width], of norm 1.
  void embed(std::span<const int> ids, std::span<const std::ptrdiff_t> ends, float* embeddings,
             Workspace& workspace) const;

 private:
  struct Linear {
    std::span<const float> weight, bias;  // [out, in], [out]
  };
  struct LayerNorm {
    std::span<const float> weight, bias;
  };
  struct Layer {
    std::vector<float> qkv_weight, qkv_bias;  // queries, keys and values: one product
    Linear qkv, attention_output, intermediate, output;
    LayerNorm attention_norm, output_norm;
  };

  Linear load_linear(const std::string& name, std::ptrdiff_t out, std::ptrdiff_t in) const;
  LayerNorm load_norm(const std::string& name) const;

  void sum_embeddings(std::span<const int> ids, std::span<const std::ptrdiff_t> ends,
                      float* x) const;
  void attend(std::span<const std::ptrdiff_t> ends, Workspace& workspace) const;
  void apply(const Linear& linear, const float* x, std::ptrdiff_t tokens, float* y) const;
  void add_and_norm(const LayerNorm& norm, std::ptrdiff_t tokens, Workspace& workspace) const;

  SafeTensors file_;
  std::ptrdiff_t width_, heads_, intermediate_width_;
  double eps_;
  std::span<const float> words_, positions_, type_;  // [vocabulary, width], [length, width], ...
  LayerNorm embedding_norm_;
  std::vector<Layer> layers_;
};

}  // namespace example
