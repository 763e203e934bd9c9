// Sentence embeddings: a line of text in, a line of numbers out.
//
//   embed MODEL_DIR [--tokens] [--threads N] [--repeat N] < sentences.txt > embeddings.txt
//
// --tokens prints the numbers of the word pieces instead; --repeat does everything N times, and the
// median time goes to standard error.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <future>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bert.h"
#include "matmul.h"
#include "tokenizer.h"

namespace {

using example::Bert;
using example::Tokenizer;

constexpr const char* kUsage =
    "usage: embed MODEL_DIR [--tokens] [--threads N] [--repeat N] < sentences > embeddings\n";

struct Arguments {
  std::string model_dir;
  bool tokens = false;
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  int repeat = 1;
};

Arguments parse(int argc, char** argv) {
  Arguments result;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tokens") {
      result.tokens = true;
    } else if (name == "--threads" || name == "--repeat") {
      const std::string value = i + 1 < argc ? argv[++i] : "";
      int& number = name == "--threads" ? result.threads : result.repeat;
      const char* end = value.data() + value.size();
      const auto [stop, error] = std::from_chars(value.data(), end, number);
      if (error != std::errc() || stop != end || number < 1) {
        throw std::invalid_argument(name + " is '" + value + "', expected a number >= 1");
      }
    } else if (name.starts_with("--") || !result.model_dir.empty()) {
      throw std::invalid_argument("unknown argument " + name + "\n" + kUsage);
    } else {
      result.model_dir = name;
    }
  }
  if (result.model_dir.empty()) throw std::invalid_argument(kUsage);
  return result;
}

// All sentences, and where their tokens end.
struct Tokens {
  std::vector<int> ids;
  std::vector<std::ptrdiff_t> ends;
};

Tokens tokenize(const Tokenizer& tokenizer, const std::vector<std::string>& sentences) {
  Tokens result;
  for (const std::string& sentence : sentences) {
    tokenizer.encode(sentence, result.ids);
    result.ends.push_back(std::ssize(result.ids));
  }
  return result;
}

// Some sentences that follow each other, for one call.
struct Batch {
  std::ptrdiff_t first_sentence, first_token;
  std::vector<std::ptrdiff_t> ends;  // from the first token
};

std::vector<Batch> cut(const Tokens& tokens, std::ptrdiff_t max_tokens) {
  std::vector<Batch> result;
  std::ptrdiff_t begin = 0;
  for (std::ptrdiff_t s = 0; s < std::ssize(tokens.ends); begin = tokens.ends[s++]) {
    if (result.empty() || tokens.ends[s] - result.back().first_token > max_tokens) {
      result.push_back({s, begin, {}});
    }
    result.back().ends.push_back(tokens.ends[s] - result.back().first_token);
  }
  return result;
}

// Computes the batches, each thread (a workspace is its) taking the next one that is left.
void embed(const Bert& bert, const Tokens& tokens, const std::vector<Batch>& batches,
           std::vector<Bert::Workspace>& workspaces, std::vector<float>& embeddings) {
  std::atomic<std::size_t> next{0};
  const auto work = [&](Bert::Workspace& workspace) {
    for (std::size_t i = next++; i < batches.size(); i = next++) {
      const Batch& batch = batches[i];
      const auto ids = std::span(tokens.ids).subspan(batch.first_token, batch.ends.back());
      float* out = embeddings.data() + batch.first_sentence * bert.width();
      bert.embed(ids, batch.ends, out, workspace);
    }
  };
  std::vector<std::future<void>> others;
  for (std::size_t i = 1; i < workspaces.size(); ++i) {
    others.push_back(std::async(std::launch::async, work, std::ref(workspaces[i])));
  }
  work(workspaces[0]);
  for (std::future<void>& other : others) other.get();  // throws what it threw
}

template <class T>
void print_row(const T* values, std::ptrdiff_t n) {
  std::string line;
  char text[32];
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto end = std::to_chars(text, text + sizeof text, values[i]).ptr;  // the exact value
    if (i > 0) line += ' ';
    line.append(text, end);
  }
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
}

void run(const Arguments& arguments) {
  const Tokenizer tokenizer(arguments.model_dir);
  std::vector<std::string> sentences;
  for (std::string line; std::getline(std::cin, line);) sentences.push_back(line);
  if (arguments.tokens) {
    const Tokens tokens = tokenize(tokenizer, sentences);
    std::ptrdiff_t begin = 0;
    for (const std::ptrdiff_t end : tokens.ends) {
      print_row(tokens.ids.data() + begin, end - begin);
      begin = end;
    }
    return;
  }

  example::use_one_blas_thread();
  const Bert bert(arguments.model_dir);
  if (tokenizer.max_length() > bert.max_length() ||
      tokenizer.vocabulary_size() > bert.vocabulary_size()) {
    throw std::runtime_error("the tokenizer and the weights of the model do not fit together");
  }
  // Enough rows for the matrix products to run at full speed, few enough for a core's cache.
  const std::ptrdiff_t max_tokens = std::max(512, tokenizer.max_length());
  std::vector<Bert::Workspace> workspaces(arguments.threads, Bert::Workspace(bert, max_tokens));
  std::vector<float> embeddings(sentences.size() * bert.width());
  std::vector<double> seconds;
  std::size_t count = 0;
  for (int i = 0; i < arguments.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const Tokens tokens = tokenize(tokenizer, sentences);
    embed(bert, tokens, cut(tokens, max_tokens), workspaces, embeddings);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    seconds.push_back(time.count());
    count = tokens.ids.size();
  }
  for (std::size_t s = 0; s < sentences.size(); ++s) {
    print_row(embeddings.data() + s * bert.width(), bert.width());
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  std::fprintf(stderr, "%zu sentences, %zu tokens: %.6f s (threads: %d; normcore %s on %s, %s)\n",
               sentences.size(), count, seconds[seconds.size() / 2], arguments.threads,
               NORMCORE_VERSION, normcore::get_isa().c_str(), example::matmul_library());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
    return std::fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
