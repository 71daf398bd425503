#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Wherever addcow-img check -r crashes, nothing is wrong that was not wrong
# before, no sector becomes another one, and -r again mends the rest.  What it
# writes is synced, and in an order that keeps what the header says of the
# format.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/check.sh"
source "$abs_srcdir/crash.sh"

# Broken is bad.add-cow, and it is to become good.add-cow.
broken ()
{
    cp --sparse=always bad.add-cow vm.add-cow
}

format ()
{
    addcow-img info --output=json vm.add-cow |
        sed -n 's/.*"backing-filename-format": "\(.*\)".*/\1/p'
}

# Not longer than before or than it is to be, with the same names and the same
# bits of sectors.
not_worse ()
{
    local length longest
    length=$(stat -c %s vm.add-cow)
    longest=$(stat -c %s good.add-cow)
    [ "$length" -eq "$longest" ] ||
        [ "$length" -eq "$(stat -c %s bad.add-cow)" ]
    cmp -n $((12 + name_bytes)) vm.add-cow good.add-cow
    cmp -i 1036 -n $((2068 - 1036 + full - 2068 - 1)) vm.add-cow \
        bad.add-cow ||
        [ "$length" -eq "$longest" ]
    # Half of a sector is not written when the power goes.
    if [ -z "$crash_part" ] && [ -n "$has_format" ]; then
        [ "$(format)" = raw ]
    fi
    if [ "$crash_at" = "done" ]; then cmp vm.add-cow good.add-cow; fi
    unwatched addcow-img check -q -r vm.add-cow
    [ -n "$has_format" ] || cmp vm.add-cow good.add-cow
}

mend_each ()
{
    crash_each broken not_worse addcow-img check -q -r vm.add-cow
}

# The bitmap.
name_bytes=8 has_format=
new
truncate -s 2100 vm.add-cow
cp vm.add-cow bad.add-cow
truncate -s $full vm.add-cow
cp vm.add-cow good.add-cow
mend_each
cat > "$tmp/want" <<'CALLS'
1 fdatasync
2 ftruncate
3 fdatasync
CALLS
cut -d' ' -f1,2 "$tmp/crash-calls" | diff - "$tmp/want"

new
at $((full - 1)) '\x01'
cp vm.add-cow good.add-cow
at $((full - 1)) '\xff\1\2'
truncate -s 1M vm.add-cow
cp --sparse=always vm.add-cow bad.add-cow
mend_each
cat > "$tmp/want" <<'CALLS'
1 fdatasync
2 pwrite
2 half pwrite
3 ftruncate
4 fdatasync
CALLS
sed 's, [^ ]*/.*,,' "$tmp/crash-calls" | diff - "$tmp/want"

# Hints over the border of two sectors: the lower part is written last.  Of
# those that have no meaning one may be lost in between.
has_format=yes
border 7 'qqq\0a=1\0b=\0c=\0format=raw\0' 'a=1\0b=\0c=\0format=raw\0'
name_bytes=492
cp vm.add-cow bad.add-cow
mv good good.add-cow
mend_each
cat > "$tmp/want" <<'CALLS'
1 fdatasync
2 pwrite
2 half pwrite
3 fdatasync
4 pwrite
4 half pwrite
5 fdatasync
CALLS
sed 's, [^ ]*/.*,,' "$tmp/crash-calls" | diff - "$tmp/want"
cp bad.add-cow vm.add-cow
: > "$tmp/log"
env FAULT_LOG="$tmp/log" FAULT_TRIGGER="$tmp/trigger" \
    LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
    "${VG[@]}" "$addcow_img" check -q -r vm.add-cow
cat "$tmp/log"
[ "$(grep ^pwrite "$tmp/log" | cut -d' ' -f3 | paste -s)" = $'512\t505' ]

# And where it does not matter, the upper one.
border 11 'format=raw\0x\0y=1\0z=2\0' 'format=raw\0y=1\0z=2\0'
name_bytes=488
cp vm.add-cow bad.add-cow
mv good good.add-cow
mend_each
