// The program `hostmm`: the command line with the real pager. Nothing else happens here.

#include "runtime/cli/cli_main.h"
#include "runtime/pager.h"

int main(int argc, char** argv) { return hostmm::CliMain(argc, argv, hostmm::RunPager); }
