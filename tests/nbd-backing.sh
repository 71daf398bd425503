# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests with a server as the backing file share, after
# functions.sh and maybe bad-input.sh.  They work in $tmp.

requires_nbdsh
requires nbdinfo --version
requires_plugin file

export PYTHONPATH=$abs_srcdir PYTHONDONTWRITEBYTECODE=1
[ "$PWD" = "$tmp/t" ] || cd "$tmp" || exit 1

# Seconds within which what must come has come.
patience=60
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || patience=300

# For addcow-backing-timeout, where a request is to fail: the seconds after
# which it does, in which a connection is made when the server starts.
lost_seconds=1
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || lost_seconds=5

# start_base NAME ARGUMENT...: as start_nbdkit, without valgrind and
# sanitizers, for what is a backing file.  It is $base_uri and $base_pid,
# and stop_nbdkit stops it.
start_base ()
{
    local VG=() RUN=() _preload='' preload='' pid uri
    start_nbdkit "$@"
    base_pid=$pid
    base_uri="nbd+unix:///?socket=$tmp/$1"
}

# listen PORTFILE COMMAND...: exec COMMAND, which is nbdkit or qemu-nbd, with
# a socket that listens on a free port of 127.0.0.1 and is in PORTFILE.
cat > listen.py <<'PY'
import os, socket, sys

s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen(64)
if s.fileno() != 3:
    os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
with open(sys.argv[1] + ".new", "w") as f:
    f.write("%d\n" % s.getsockname()[1])
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
PY

# start_tcp ARGUMENT...: nbdkit on the port $base_port of 127.0.0.1.
start_tcp ()
{
    rm -f port
    /usr/bin/python3 listen.py port "$(type -P nbdkit)" -f "$@" &
    base_pid=$!
    cleanup_fn "end $base_pid"
    wait_for test -s port
    base_port=$(cat port)
}

# end PID [SIGNAL]: end a job of this shell and wait until it has ended.
end ()
{
    kill -s "${2:-TERM}" "$1" 2>/dev/null || :
    wait "$1" 2>/dev/null || :
}

# wait_for COMMAND...: until it succeeds, but not for ever.
wait_for ()
{
    local end=$((SECONDS + patience))
    while [ $SECONDS -lt $end ]; do
        if { "$@"; } >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "$test_name: waited in vain: $*"
    return 1
}

# losses LOG NAME: how often, according to LOG, the stderr of a server, the
# connection to the backing file NAME was lost; returns: was made again.
losses ()
{
    grep -cF -- "$2: connection lost: " "$1" || :
}

returns ()
{
    grep -cF -- "$2: connected again" "$1" || :
}

# has losses|returns LOG NAME COUNT: there are so many, or more.
has ()
{
    [ "$("$1" "$2" "$3")" -ge "$4" ]
}

# Not for the background: to end the job would not end the program.
python ()
{
    /usr/bin/python3 "$@"
}
