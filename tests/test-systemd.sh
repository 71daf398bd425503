#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The units: systemd understands them and the drop-ins of the man page, they
# are confined, and the command in addcow@.service serves an overlay on a
# socket that it was given, and ends in order.  What it calls is allowed.

source ./functions.sh
set -e
set -x

requires type systemd-analyze
requires type systemd-socket-activate
requires_plugin file
requires_filter exitlast
requires_nbdsh
requires type qemu-img qemu-nbd strace

pod=$abs_top_srcdir/docs/nbdkit-addcow-filter.pod
units=$tmp/units
service=$units/addcow@.service

mkdir "$units"
cp "$abs_top_builddir/systemd/addcow@.service" \
   "$abs_top_srcdir/systemd/addcow@.socket" "$units"

#--- What systemd says.

# verify UNIT...: systemd has nothing to say about them, in $units.
verify ()
{
    (cd "$units" && systemd-analyze verify --man=no "$@") \
        >"$tmp/out" 2>&1 || { cat "$tmp/out"; return 1; }
    cat "$tmp/out"
    [ ! -s "$tmp/out" ]
}

verify ./addcow@.service ./addcow@.socket

# Of 100, less is better: nginx of Debian has 96, a unit without anything
# as well.
systemd-analyze security --offline=true --threshold=10 --no-pager \
    "$service" > "$tmp/out" || { cat "$tmp/out"; exit 1; }
# The threshold is one.
if systemd-analyze security --offline=true --threshold=1 --no-pager \
    "$service" > "$tmp/out"; then exit 1; fi

# Each drop-in of the man page, with the unit that is named before it: the
# lines of =head1 SYSTEMD that are indented and begin with [Section].
awk -v folder="$units" '
    /^=head1 / { inside = $2 == "SYSTEMD" }
    !inside { next }
    /^ \[[A-Z][a-z]*\]$/ {
        file = folder "/dropin" ++n "." tolower (substr ($1, 2,
                                                 length ($1) - 2))
    }
    /^$/ { file = "" }
    file { print substr ($0, 2) > file }
' "$pod"
cat "$units"/dropin*
for dropin in "$units"/dropin*; do
    case $dropin in
        *.service) unit=addcow@.service ;;
        *.socket) unit=addcow@.socket ;;
        *.unit) unit=guest.service ;;
        *) exit 1 ;;
    esac
    [ "$unit" != guest.service ] ||
        printf '[Service]\nExecStart=/bin/true\n' > "$units/guest.service"
    mkdir "$units/$unit.d"
    mv "$dropin" "$units/$unit.d/x.conf"
    verify "./$unit"
    rm -r "$units/$unit.d"
done
test -e "$units/guest.service"

# A mistake would have been told.
sed 's/^ProtectHome=/ProtectHomes=/' "$service" > "$units/wrong@.service"
if verify ./wrong@.service; then exit 1; fi

#--- The command, on a socket of systemd's.

# In a word each, as systemd makes them; variables are those of the caller.
read -r -a line < <(sed -n 's/^ExecStart=//p' "$service")
test "${#line[@]}" -gt 4
grep -x 'Environment=NBDKIT_OPTIONS= ADDCOW_OPTIONS=' "$service"

# start: what systemd does for the first client, who comes soon.  Its process
# becomes nbdkit.
start ()
{
    local command=() pass=() words=() word name i libs=$_preload
    for word in "${line[@]:1}"; do
        case $word in
            \$*)
                # Of words there may be none.
                name=${word#\$}
                read -r -a words <<< "${!name}"
                command+=("${words[@]}") ;;
            --filter=addcow) command+=("--filter=$addcow") ;;
            *)
                word=${word//%i/vm}
                command+=("${word/\/var\/lib\/addcow/$tmp}") ;;
        esac
    done
    for name in ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS; do
        [ -z "${!name}" ] || pass+=(-E "$name")
    done
    rm -f "$tmp/sock"
    systemd-socket-activate "${pass[@]}" -l "$tmp/sock" \
        env ${libs:+LD_PRELOAD="$libs"} "${before[@]}" "${VG[@]}" \
        "${line[0]}" "${command[@]}" >"$tmp/log" 2>&1 &
    pid=$!
    eval "_bg_$pid=$pid"
    cleanup_fn "stop_nbdkit $pid"
    for ((i = 0; i < 600; i++)); do
        [ ! -S "$tmp/sock" ] || return 0
        sleep 0.1
    done
    return 1
}

# client CODE: a client.
client ()
{
    /usr/bin/python3 - "$tmp/sock" <<END
import nbd
import sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
$1
h.shutdown()
END
}

cd "$tmp"
random_file base.img 1M
qemu-img convert -f raw -O qcow2 base.img base.qcow2
addcow-img create -b base.img -F raw vm.add-cow
NBDKIT_OPTIONS='' ADDCOW_OPTIONS=''
before=()

start
client '
h.pwrite(b"\1" * 4096, 8192)
assert h.pread(4096, 8192) == b"\1" * 4096
assert h.pread(4096, 0) == open("base.img", "rb").read(4096)
h.pwrite(b"\2" * 512, 512)
'
stop_nbdkit $pid
addcow-img map vm.add-cow | tee map
cmp <(tail -c +8193 vm.raw | head -c 4096) \
    <(head -c 4096 /dev/zero | tr '\0' '\1')

# Parameters before and behind, where the image was moved; it ends with the
# last client.
mv vm.raw moved.raw
NBDKIT_OPTIONS='-r --filter=exitlast'
ADDCOW_OPTIONS='addcow-commit-interval=1 file=moved.raw'
start
client '
assert h.is_read_only()
assert h.pread(512, 512) == b"\2" * 512
'
wait "$pid"
eval "_bg_$pid="

# What it and a qemu-nbd call is in the filter of the unit, but for what a
# library calls to find out whether there is NUMA.
if [ -z "$SANITIZER$ADDCOW_VALGRIND" ]; then
    rm vm.* moved.raw
    addcow-img create -b base.qcow2 -F qcow2 vm.add-cow
    NBDKIT_OPTIONS='' ADDCOW_OPTIONS='addcow-hydrate=true addcow-on-read=true'
    # Its own process is the server.
    before=(strace -D -f -qq -o "$tmp/calls")
    start
    client '
h.pwrite(b"\1" * 4096, 8192)
assert h.pread(1024 * 1024, 0) == \
    open("base.img", "rb").read(8192) + b"\1" * 4096 + \
    open("base.img", "rb").read()[12288:]
h.trim(65536, 0)
h.zero(65536, 65536)
h.flush()
'
    stop_nbdkit $pid
    sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' "$tmp/calls" |
        sort -u > called
    # The nbdkit of the last part was there, and so was qemu-nbd.
    grep -x pwritev2 called || grep -x pwrite64 called
    grep execve "$tmp/calls" | grep qemu-nbd

    # members GROUP: the system calls in it, those of groups in it as well.
    members ()
    {
        local name
        systemd-analyze syscall-filter "$1" |
            sed -n '1d; s/^ *\([-@a-z_0-9]\{1,\}\)$/\1/p' |
            while read -r name; do
                case $name in
                    @*) members "$name" ;;
                    *) echo "$name" ;;
                esac
            done
    }
    { set +x; } 2>/dev/null
    touch allowed
    while read -r -a filter; do
        for word in "${filter[@]}"; do
            case $word in
                *@*) members "${word#\~}" ;;
                *) echo "${word#\~}" ;;
            esac
        done | sort -u > named
        case ${filter[0]} in
            \~*) comm -23 allowed named > new ;;
            *) sort -u allowed named > new ;;
        esac
        mv new allowed
    done < <(sed -n 's/^SystemCallFilter=//p' "$service")
    set -x
    grep -x pwrite64 allowed
    if grep -x mount allowed; then exit 1; fi
    comm -23 called allowed | grep -vx set_mempolicy | tee denied
    test ! -s denied
fi
