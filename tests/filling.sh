# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of filling share, after nbd-backing.sh.

requires_plugin eval

export patience

# alone LOG [IMAGE [METADATA]]: was it logged once that IMAGE stands alone?
alone ()
{
    [ "$(told "$1" "${2:-vm.raw} stands alone: ${3:-vm.add-cow} and the\
 backing file are no longer needed")" -eq 1 ]
}

# not_alone LOG: it was not.
not_alone ()
{
    ! grep -F 'stands alone' "$1"
}

# told LOG TEXT: how many of LOG's lines end with TEXT.
told ()
{
    TEXT=$2 awk '{ at = length ($0) - length (ENVIRON["TEXT"]) + 1 }
        at > 0 && substr ($0, at) == ENVIRON["TEXT"] { n++ }
        END { print n + 0 }' "$1"
}

# bits METADATA: how many sectors are allocated.
bits ()
{
    python -c 'import sys, nbd_client
print(len(nbd_client.bits(sys.argv[1])))' "$1"
}

# has_bits METADATA COUNT: are so many, or more?
has_bits ()
{
    [ "$(bits "$1")" -ge "$2" ]
}

# complete METADATA true|false: what addcow-img says.
complete ()
{
    addcow-img info "$1" | grep -x "complete: $2"
}

# has_open PID FILE: has the process PID that file open?
has_open ()
{
    [ -n "$(find "/proc/$1/fd" -lname "$(realpath "$2")")" ]
}

# start_serial NAME ARGUMENT...: start_base, for clients that may leave while
# requests are under way: nbdkit with threads can crash then.  Without them
# it does not end while a client is there, so it is killed.
start_serial ()
{
    local name=$1
    shift
    start_base "$name" -t 1 "$@"
    cleanup_fn "stop_nbdkit $base_pid KILL"
}

# What was asked of a server with --filter=log logfile=LOG.
reads ()
{
    grep -c ' Read id=' "$1" || :
}

# ends_soon PID: the server ends when it is told to, and without an error,
# before what it does would be over by itself.
ends_soon ()
{
    local start=$SECONDS
    stop_nbdkit "$1"
    [ $((SECONDS - start)) -lt $((patience / 2)) ]
}

# --- Requests that wait until they are let go. ------------------------------

# For scripts of the eval plugin: while there is $tmp/hold, a request waits for
# $tmp/go, and is a line "OFFSET COUNT" in $tmp/held.  Others pass by it.
cat > gate.sh <<'SH'
if [ -e "$tmp/hold" ]; then
    echo "$4 $3" >> "$tmp/held"
    while [ -d "$tmp" ] && [ ! -e "$tmp/go" ]; do sleep 0.05; done
fi
SH

# gated reads|writes FILE: a plugin with its parameters, in $plugin: FILE, of
# which requests of that kind wait when they are to.
gated ()
{
    local reads=: writes=:
    eval "$1"='". $tmp/gate.sh"'
    plugin=(eval thread_model='echo parallel'
        get_size="stat -c %s $tmp/$2"
        pread="$reads; dd if=$tmp/$2 bs=256K skip=\$4 count=\$3 \
               iflag=skip_bytes,count_bytes status=none"
        can_write='exit 0'
        pwrite="$writes; dd of=$tmp/$2 bs=256K seek=\$4 oflag=seek_bytes \
                iflag=fullblock conv=notrunc status=none"
        can_zero='exit 0' can_trim='exit 0'
        zero="$writes; fallocate -p -o \$4 -l \$3 $tmp/$2"
        trim="$writes; fallocate -p -o \$4 -l \$3 $tmp/$2"
        can_flush='exit 0' flush='exit 0' can_multi_conn='exit 0')
    rm -f hold held go
}
