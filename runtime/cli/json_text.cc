#include "runtime/cli/json_text.h"

#include <cstdio>

namespace hostmm {

std::string JsonQuoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

void JsonObject::Add(std::string_view name, std::span<const JsonObject> values) {
  std::string list = "[";
  for (const JsonObject& value : values) {
    if (list.size() > 1) list += ",";
    list += value.text();
  }
  AddRaw(name, list + "]");
}

void JsonObject::AddRaw(std::string_view name, std::string_view value) {
  if (!members_.empty()) members_ += ",";
  members_.append(JsonQuoted(name)).append(":").append(value);
}

}  // namespace hostmm
