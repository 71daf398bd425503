# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2034,SC2154 # functions.sh comes before
#
# A server whose power fails; after functions.sh.  Its files are vm.add-cow
# and vm.raw in $tmp/d, what they were when the log $tmp/log began are those
# in $tmp/first, the backing file is $tmp/base.img.

power_log_lib=$abs_top_builddir/tests/.libs/power-log.so
power_client=$abs_top_builddir/tests/power-client
power_states=$abs_top_builddir/tests/power-states

power_bytes=$((8 * 1024 * 1024))

# A client that hangs has failed.
power_time=(timeout 600)

# A new overlay: its backing file is shorter, and has holes; in the image is
# what means nothing.
power_new ()
{
    rm -rf "$tmp/d"
    mkdir "$tmp/d"
    random_file "$tmp/base.img" $((6 * 1024 * 1024 + 77))
    fallocate -p -o 1M -l 1M "$tmp/base.img"
    fallocate -p -o 4M -l 256K "$tmp/base.img"
    addcow-img create -q -b "$tmp/base.img" "$tmp/d/vm.add-cow" $power_bytes
    random_file "$tmp/d/vm.raw" $power_bytes
}

# The log begins with the files that there are.
power_begin ()
{
    rm -rf "$tmp/log" "$tmp/first"
    cp -r "$tmp/d" "$tmp/first"
}

# power_serve PARAMETER...: a server whose every step is logged; "layers" are
# those below addcow, "client_options" those of power-client.
layers=()
client_options=()
power_serve ()
{
    export POWER_LOG=$tmp/log POWER_FOLDER=$tmp/d POWER_SYNC_US=500
    preload=$power_log_lib
    start_nbdkit sock --filter="$addcow" "${layers[@]}" \
        file addcow="$tmp/d/vm.add-cow" "$@"
    preload=
    unset POWER_LOG POWER_FOLDER POWER_SYNC_US
}

# power_killed SEED REQUESTS PARAMETER...: it is killed under load.
power_killed ()
{
    local s=$1 n=$2
    shift 2
    power_serve "$@"
    "${power_time[@]}" "$power_client" "${client_options[@]}" -s "$s" -n "$n" -k "$pid" \
        "$tmp/log" "$uri"
    stop_nbdkit "$pid" KILL
    "$power_client" -f "$tmp/log" "$tmp/d/vm.add-cow" "$tmp/d/vm.raw"
}

# power_stopped SEED REQUESTS PARAMETER...: it is stopped after that.
power_stopped ()
{
    local s=$1 n=$2
    shift 2
    power_serve "$@"
    "${power_time[@]}" "$power_client" "${client_options[@]}" -s "$s" -n "$n" "$tmp/log" "$uri"
    stop_nbdkit "$pid"
}
