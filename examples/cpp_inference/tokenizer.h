// BERT's tokenizer: text to the numbers of word pieces, as the model's tokenizer.json says. Safe to
// use from many threads.
#pragma once

#include <unicode/normalizer2.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace example {

class Tokenizer {
 public:
  explicit Tokenizer(const std::filesystem::path& model_dir);

  // Appends the tokens of a UTF-8 text, between [CLS] and [SEP], and truncated to max_length().
  void encode(std::string_view text, std::vector<int>& ids) const;

  int max_length() const { return max_length_; }
  int vocabulary_size() const { return vocabulary_size_; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  using Pieces = std::unordered_map<std::string, int, Hash, std::equal_to<>>;

  void encode_text(std::string_view text, std::vector<int>& ids) const;
  void encode_word(std::string_view word, int characters, std::vector<int>& ids) const;

  const icu::Normalizer2* nfd_;
  Pieces words_, continuations_;                      // how a word begins, and how it goes on
  std::vector<std::pair<std::string, int>> special_;  // such as [MASK], also when a text has them
  std::size_t longest_ = 0;                           // of all pieces, in bytes
  int vocabulary_size_, max_length_, max_word_length_;
  int cls_, sep_, unknown_;
};

}  // namespace example
