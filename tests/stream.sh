# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of addcow-img stream share with those of commit, after
# functions.sh, bad-input.sh and nbd-backing.sh.  The overlay is vm.add-cow,
# its image vm.raw, and "disk" is what the disk must be.

verb=${verb:-stream}

# start_stream [OPTION...]: $verb in the background, as $streamer, to the
# files out and err.
start_stream ()
{
    # Jobs of a script ignore SIGINT, and so would the program.
    env --default-signal=INT "${VG[@]}" "$addcow_img" $verb "$@" vm.add-cow \
        >out 2>err &
    streamer=$!
}
streamer=
# shellcheck disable=SC2016 # the one there is at the end
cleanup_fn '[ -z "$streamer" ] || kill -KILL "$streamer" || :'

# has_filled: something is in the image, which was a hole.
has_filled ()
{
    [ "$(stat -c %b vm.raw)" -gt 0 ] || ! kill -0 "$streamer"
}

# ends STATUS: it ends, with that exit status.
ends ()
{
    local status=0
    wait "$streamer" || status=$?
    streamer=
    cat out err
    [ $status -eq "$1" ]
}

# served: what a server says that the disk is.
served ()
{
    rm -f served sock
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -r -U sock --filter="$addcow" file addcow=vm.add-cow \
        --run 'nbdcopy "$uri" served'
    cmp served disk
}

# nr_allocated: sectors, as the file says.
nr_allocated ()
{
    python -c 'from nbd_client import *; print(len(bits("vm.add-cow")))'
}

# alone [BACKING]: it was said that the image stands alone, and it does.
alone ()
{
    local says="vm.raw stands alone: vm.add-cow is no longer needed"
    if [ -n "$1" ]; then
        says+=", nor is the backing file $1 by this overlay"
    fi
    cat out err
    echo "$says" | cmp - out
    [ ! -s err ]
    complete
}

complete ()
{
    addcow-img info vm.add-cow | grep -x "complete: true"
    [ "$(nr_allocated)" -eq $(($(stat -c %s disk) / 512)) ]
    cmp -n "$(stat -c %s disk)" vm.raw disk
}
