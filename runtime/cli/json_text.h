// JSON output, as text: an object that is written member by member. Only what `--json` needs;
// nothing is parsed here.
//
// Use:  JsonObject inner; inner.Add("pid", 7);   JsonObject outer; outer.Add("guest", inner);
// outer.text()
#ifndef HOSTMM_RUNTIME_CLI_JSON_TEXT_H_
#define HOSTMM_RUNTIME_CLI_JSON_TEXT_H_

#include <concepts>
#include <span>
#include <string>
#include <string_view>

namespace hostmm {

// `text` in quotes, with what JSON wants escaped. Bytes that are no ASCII go through as they are.
std::string JsonQuoted(std::string_view text);

class JsonObject {
 public:
  void Add(std::string_view name, std::string_view value) { AddRaw(name, JsonQuoted(value)); }
  void Add(std::string_view name, std::integral auto value) { AddRaw(name, std::to_string(value)); }
  void Add(std::string_view name, const JsonObject& value) { AddRaw(name, value.text()); }
  void Add(std::string_view name, std::span<const JsonObject> values);
  void AddNull(std::string_view name) { AddRaw(name, "null"); }

  std::string text() const { return "{" + members_ + "}"; }

 private:
  void AddRaw(std::string_view name, std::string_view value);

  std::string members_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_JSON_TEXT_H_
