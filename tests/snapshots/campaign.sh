#!/bin/sh
# 10,000 snapshots of a region that 8 processes write, each judged; see consistency_cases.cc.
# FRAMES and KIND of the environment: huge, base or hugetlb; optin, named or plain.
hostmm=$1 guest=$2
shift 2
HOSTMM_TEST_FRAMES=${FRAMES:-huge} HOSTMM_TEST_KIND=${KIND:-optin} HOSTMM_PROGRAM=$PWD/$hostmm \
  exec "$guest" --peer campaign "$@"
