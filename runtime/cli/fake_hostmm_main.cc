// `hostmm` with the fake pager, for the tests of the command line.

#include "runtime/cli/cli_main.h"
#include "runtime/cli/fake_pager.h"

int main(int argc, char** argv) { return hostmm::CliMain(argc, argv, hostmm::RunFakePager); }
