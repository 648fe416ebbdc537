// The program that an oracle runs, plain or under hostmm:
//   oracle_guest PROGRAM_FILE OBSERVATIONS_FILE
// HOSTMM_ORACLE_WRONG=protect|remove makes it lie, for the test that lies are found.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "tests/oracle/program.h"
#include "tests/oracle/stepper.h"

namespace hostmm::oracle {
namespace {

Wrong WrongAsAsked() {
  const char* const wrong = getenv("HOSTMM_ORACLE_WRONG");
  if (wrong == nullptr) return Wrong::kNothing;
  return strcmp(wrong, "protect") == 0 ? Wrong::kProtect : Wrong::kRemove;
}

int Main(const char* program_path, const char* seen_path) {
  const Program program = LoadProgram(program_path);
  if (program.actors == 0) {
    fprintf(stderr, "%s holds no program\n", program_path);
    return 65;
  }
  const std::vector<Observation> seen = Stepper(WrongAsAsked()).Run(program);
  std::ofstream file(seen_path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(seen.data()),
             static_cast<std::streamsize>(seen.size() * sizeof(Observation)));
  file.close();
  return file.fail() ? 74 : 0;
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s PROGRAM_FILE OBSERVATIONS_FILE\n", argv[0]);
    return 64;
  }
  return hostmm::oracle::Main(argv[1], argv[2]);
}
