#include "tokenizer.h"

#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "json_file.h"

namespace example {
namespace {

// General category, as a mask. The tokenizers that the models were trained with have the categories
// of Unicode 8: none for younger characters, and for a few others not those of today.
std::uint32_t category(UChar32 c) {
  switch (c) {
    case 0x166D:
    case 0x111C9:
      return U_GC_PO_MASK;
    case 0x1734:
      return U_GC_MN_MASK;
    case 0x1885:
    case 0x1886:
      return U_GC_LO_MASK;
    case 0xA9BD:
      return U_GC_MC_MASK;
  }
  UVersionInfo age;
  u_charAge(c, age);
  return age[0] > 8 ? U_GC_CN_MASK : U_GET_GC_MASK(c);
}

bool is_space(UChar32 c) { return u_isUWhiteSpace(c); }

// What is dropped from a text: NUL, the sign of broken UTF-8, and controls that are no space.
bool is_dropped(UChar32 c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  return c == 0 || c == 0xFFFD || (category(c) & (U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK));
}

bool is_punctuation(UChar32 c) {
  if (c < 128) return std::ispunct(static_cast<int>(c));  // with symbols such as $ and +
  return category(c) & U_GC_P_MASK;
}

// The blocks of Chinese characters that the model takes one by one.
bool is_ideograph(UChar32 c) {
  static constexpr UChar32 kBlocks[][2] = {
      {0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},   {0x20000, 0x2A6DF},
      {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks),
                     [c](const UChar32(&block)[2]) { return block[0] <= c && c <= block[1]; });
}

void append_utf8(UChar32 c, std::string& text) {
  char bytes[U8_MAX_LENGTH];
  int n = 0;
  U8_APPEND_UNSAFE(bytes, n, c);
  text.append(bytes, n);
}

void expect(const nlohmann::json& value, const nlohmann::json& expected, const char* what) {
  if (value == expected) return;
  throw std::runtime_error(std::string("tokenizer.json has the ") + what + " " + value.dump() +
                           ", expected " + expected.dump());
}

}  // namespace

Tokenizer::Tokenizer(const std::filesystem::path& model_dir) {
  const nlohmann::json file = read_json(model_dir / "tokenizer.json");
  expect(file.at("normalizer"),
         {{"type", "BertNormalizer"},
          {"clean_text", true},
          {"handle_chinese_chars", true},
          {"strip_accents", nullptr},  // as lowercase
          {"lowercase", true}},
         "normalizer");
  expect(file.at("pre_tokenizer").at("type"), "BertPreTokenizer", "pre-tokenizer");
  const nlohmann::json& model = file.at("model");
  expect(model.at("type"), "WordPiece", "model");
  max_word_length_ = model.at("max_input_chars_per_word");
  max_length_ = read_json(model_dir / "sentence_bert_config.json").at("max_seq_length");

  const std::string prefix = model.at("continuing_subword_prefix");
  const auto& vocabulary = model.at("vocab").get_ref<const nlohmann::json::object_t&>();
  vocabulary_size_ = static_cast<int>(vocabulary.size());
  for (const auto& [piece, id] : vocabulary) {
    longest_ = std::max(longest_, piece.size());
    words_.emplace(piece, id);
    if (piece.starts_with(prefix)) continuations_.emplace(piece.substr(prefix.size()), id);
  }
  for (const auto& token : file.at("added_tokens")) {
    special_.emplace_back(token.at("content"), token.at("id"));
  }
  cls_ = words_.at("[CLS]");
  sep_ = words_.at("[SEP]");
  unknown_ = words_.at(model.at("unk_token").get<std::string>());

  UErrorCode error = U_ZERO_ERROR;
  nfd_ = icu::Normalizer2::getNFDInstance(error);
  if (U_FAILURE(error)) throw std::runtime_error(std::string("ICU: ") + u_errorName(error));
}

void Tokenizer::encode(std::string_view text, std::vector<int>& ids) const {
  const std::size_t begin = ids.size(), full = begin + max_length_ - 1;
  ids.push_back(cls_);
  while (!text.empty() && ids.size() < full) {
    // Up to the first special token, if any is there.
    std::size_t place = std::string_view::npos;
    const std::pair<std::string, int>* token = nullptr;
    for (const auto& candidate : special_) {
      const std::size_t found = text.find(candidate.first);
      if (found < place) {
        place = found;
        token = &candidate;
      }
    }
    encode_text(text.substr(0, place), ids);
    if (!token) break;
    ids.push_back(token->second);
    text.remove_prefix(place + token->first.size());
  }
  if (ids.size() > full) ids.resize(full);
  ids.push_back(sep_);
}

void Tokenizer::encode_text(std::string_view text, std::vector<int>& ids) const {
  icu::UnicodeString cleaned, decomposed;
  for (std::size_t i = 0; i < text.size();) {
    UChar32 c;
    U8_NEXT_OR_FFFD(text.data(), i, text.size(), c);
    if (is_dropped(c)) continue;
    if (is_ideograph(c)) {
      cleaned.append(u' ').append(c).append(u' ');
    } else {
      cleaned.append(c);
    }
  }
  UErrorCode error = U_ZERO_ERROR;
  nfd_->normalize(cleaned, decomposed, error);
  if (U_FAILURE(error)) throw std::runtime_error(std::string("ICU: ") + u_errorName(error));

  std::string word;
  int characters = 0;
  const auto end_word = [&] {
    if (characters > 0) encode_word(word, characters, ids);
    word.clear();
    characters = 0;
  };
  for (int i = 0; i < decomposed.length(); i = decomposed.moveIndex32(i, 1)) {
    const UChar32 c = decomposed.char32At(i);
    if (category(c) & U_GC_MN_MASK) continue;  // accents
    const bool alone = is_punctuation(c);
    if (alone || is_space(c)) end_word();
    if (is_space(c)) continue;
    append_utf8(u_tolower(c), word);
    ++characters;
    if (alone) end_word();
  }
  end_word();
}

// The longest piece that the word begins with, and again with what is left of it.
void Tokenizer::encode_word(std::string_view word, int characters, std::vector<int>& ids) const {
  const std::size_t first = ids.size();
  const Pieces* pieces = &words_;
  if (characters > max_word_length_) word = {};
  do {
    std::size_t length = std::min(word.size(), longest_);
    auto found = pieces->end();
    for (; length > 0 && found == pieces->end(); --length) {
      found = pieces->find(word.substr(0, length));
    }
    if (found == pieces->end()) {  // then the word as a whole is unknown
      ids.resize(first);
      ids.push_back(unknown_);
      return;
    }
    ids.push_back(found->second);
    word.remove_prefix(found->first.size());
    pieces = &continuations_;
  } while (!word.empty());
}

}  // namespace example
