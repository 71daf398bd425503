#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Sizes as people write them, to addcow-img create and from addcow-img info.
# Those that are none are in test-create-bad.sh.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

# The size in the header, from its own bytes.
while read -r text bytes; do
    addcow-img create -q -f -i '' x.add-cow "$text"
    [ "$(od -An -j 2060 -N 8 -t u8 --endian=big x.add-cow)" -eq "$bytes" ]
    addcow-img create -q -f -i '' -o size="$text" x.add-cow
    [ "$(od -An -j 2060 -N 8 -t u8 --endian=big x.add-cow)" -eq "$bytes" ]
done <<'TABLE'
0 0
0K 0
00 0
1 512
511 512
512 512
512b 512
512B 512
513 1024
010 512
0.5k 512
1K 1024
1k 1024
1.0K 1024
1.5K 1536
1.501K 2048
1.9999999K 2048
3.00000000000000000000000000000000K 3072
1M 1048576
0.25M 262144
10G 10737418240
10.5G 11274289152
1T 1099511627776
4294967295 4294967296
4294967297 4294967808
17592186044417 17592186044928
2P 2251799813685248
0.001E 1152921504607232
TABLE
rm x.add-cow

# size_is BYTES TEXT: what people are told.
size_is ()
{
    addcow-img create -q -f -i '' x.add-cow "$1"
    addcow-img info x.add-cow > out
    grep -xF "virtual size: $2 ($1 bytes)" out
}

size_is 0 "0 B"
size_is 512 "512 B"
size_is 1024 "1 KiB"
size_is 1536 "1.5 KiB"
size_is 1048576 "1 MiB"
size_is 10737418240 "10 GiB"
size_is 1649267441664 "1.5 TiB"
size_is 1125899906842624 "1 PiB"
