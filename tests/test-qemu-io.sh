#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What QEMU's block layer writes, zeroes and discards is read back, also
# after a restart, and allocates the sectors that it touches and no others;
# a stop loses nothing, and flush and FUA outlive a killed server.

source ./functions.sh
set -e
set -x

requires qemu-io --version
requires_plugin file

cd "$tmp"

# allocated FILE: the sectors whose bits are set, as ranges.
allocated ()
{
    /usr/bin/python3 -c '
import struct, sys
data = open(sys.argv[1], "rb").read()
size, = struct.unpack_from(">Q", data, 2060)
bitmap = data[2068:]
assert len(bitmap) == (size // 512 + 7) // 8, len(bitmap)
bits = [n for n in range(len(bitmap) * 8) if bitmap[n // 8] >> n % 8 & 1]
first = [n for n in bits if n - 1 not in bits]
last = [n for n in bits if n + 1 not in bits]
print(*(f"{a}-{b}" for a, b in zip(first, last)))' "$1"
}

# The base is 0x11 all over; the overlay is longer than it, so long that
# the bits of its end are several pages behind those of its beginning.
head -c 1M /dev/zero | tr '\0' '\021' > base.img
cp base.img base.copy
addcow-img create -q -b base.img vm.add-cow 64M
[ "$(allocated vm.add-cow)" = "" ]

# By default every write of qemu-io has FUA.
io ()
{
    local args=() c
    for c in "$@"; do
        args+=(-c "$c")
    done
    qemu-io -t writeback -f raw "${args[@]}" "$uri"
}

check=(
    "read -P 0x11 0 4k"
    "read -P 0xa1 4k 4k"
    "read -P 0x11 8k 1808"
    "read -P 0xa2 10000 1000"
    "read -P 0x11 11000 21768"
    "read -P 0xa3 32k 512"
    "read -P 0x11 33280 32256"
    "read -P 0 64k 8k"
    "read -P 0x11 72k 8k"
    "read -P 0 80k 4k"
    "read -P 0x11 86016 13985"
    "read -P 0 100001 600"
    "read -P 0x11 100601 30471"
    "read -P 0 128k 16k"
    "read -P 0x11 147456 52547"
    "read -P 0 200003 1000"
    "read -P 0x11 201003 847273"
    "read -P 0xa4 1048276 600"
    "read -P 0 1048876 66059987"
    "read -P 0xa5 67108863 1"
)

start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
io "read -P 0x11 0 1M" "read -P 0 1M 63M"
# A pattern that is not there is an error: without this the rest of the
# test would say nothing.
io "read -P 0x12 0 512" && exit 1
io  "write -P 0xa1 4k 4k" \
    "write -P 0xa2 10000 1000" \
    "write -P 0xa3 -f 32k 512" \
    "write -z 64k 8k" \
    "write -z -u 80k 4k" \
    "write -z 100001 600" \
    "discard 128k 16k" \
    "discard 200003 1000" \
    "write -P 0xa4 1048276 600" \
    "write -P 0xa5 67108863 1" \
    "flush" \
    "${check[@]}"
stop_nbdkit "$pid"
sectors="8-15 19-21 64-64 128-143 160-167 195-196 256-287 390-392 2047-2048 131071-131071"
[ "$(allocated vm.add-cow)" = "$sectors" ]

# Reading allocates nothing, nor does writing what is allocated.
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
io "${check[@]}"
io "write -P 0xa6 4097 100" "write -z -u 32k 512" "discard 64k 8k"
stop_nbdkit "$pid"
[ "$(allocated vm.add-cow)" = "$sectors" ]
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
qemu-io -r -f raw -c "read -P 0xa1 4k 1" -c "read -P 0xa6 4097 100" \
    -c "read -P 0xa1 4197 3995" -c "read -P 0 32k 512" \
    -c "read -P 0x11 33280 512" "$uri"
stop_nbdkit "$pid"

# wait_for_prompt: until the command before it is done.
wait_for_prompt ()
{
    local text=
    while IFS= read -r -d '>' text <&"${IO[0]}"; do
        case $text in
            *[Ff]ailed*) return 1 ;;
            *qemu-io) return 0 ;;
        esac
    done
    return 1
}

# stop_after SIGNAL SECTORS COMMAND...: when the server gets SIGNAL after
# qemu-io, connected still, was told that the commands are done, those SECTORS
# are allocated.
stop_after ()
{
    local signal=$1 sectors=$2 c io_pid
    shift 2
    rm -f stop.raw
    addcow-img create -q -f -b base.img stop.add-cow 1536K
    start_nbdkit sock --filter="$addcow" file addcow=stop.add-cow \
        addcow-commit-interval=0
    coproc IO { exec qemu-io -t writeback -f raw "$uri" 2>&1; }
    io_pid=$IO_PID
    cleanup_fn "kill -KILL $io_pid 2>/dev/null || :"
    wait_for_prompt
    for c in "$@"; do
        echo "$c" >&"${IO[1]}"
        wait_for_prompt
    done
    # nbdkit stops when its clients have gone.
    kill -s "$signal" "$pid"
    kill -KILL "$io_pid" 2>/dev/null || :
    wait "$io_pid" || :
    stop_nbdkit "$pid" "$signal"
    [ "$(allocated stop.add-cow)" = "$sectors" ]
    start_nbdkit sock --filter="$addcow" file addcow=stop.add-cow
}

# An ordinary stop loses nothing.
stop_after TERM "8-15" "write -P 0xb0 4k 4k"
io "read -P 0xb0 4k 4k"
stop_nbdkit "$pid"

# What was not flushed has left nothing that looks as if it had been.
stop_after KILL "" "write -P 0xb1 4k 4k"
io "read -P 0x11 0 64k"
stop_nbdkit "$pid"

stop_after KILL "8-15 20-20" "write -P 0xb1 4k 4k" "write -P 0xb2 10300 5" \
    "flush"
io "read -P 0xb1 4k 4k" "read -P 0x11 8k 2108" "read -P 0xb2 10300 5" \
    "read -P 0x11 10305 5"
stop_nbdkit "$pid"

stop_after KILL "9-10" "write -P 0xb3 -f 5000 600"
io "read -P 0x11 4k 904" "read -P 0xb3 5000 600" "read -P 0x11 5600 100"
stop_nbdkit "$pid"

# FUA where the sector is allocated and nobody has flushed yet.
stop_after KILL "8-15" "write -P 0xb4 4k 4k" "write -P 0xb5 -f 4k 512"
io "read -P 0xb5 4k 512" "read -P 0xb4 4608 3584"
stop_nbdkit "$pid"

stop_after KILL "128-143" "write -z -f 64k 8k"
io "read -P 0x11 0 64k" "read -P 0 64k 8k" "read -P 0x11 72k 1k"
stop_nbdkit "$pid"

stop_after KILL "256-287" "discard 128k 16k" "flush"
io "read -P 0x11 127k 1k" "read -P 0 128k 16k" "read -P 0x11 144k 1k"
stop_nbdkit "$pid"

cmp base.img base.copy
