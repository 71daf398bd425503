# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of bad input and of addcow-img share, after functions.sh.
# They work in $tmp/t, which any user can look into; $tmp is for sockets.

export PYTHONDONTWRITEBYTECODE=1
chmod 1777 "$tmp"
mkdir "$tmp/t"
cleanup_fn 'chmod -R u+rwX "$tmp/t" || :'
cd "$tmp/t" || exit 1

# Keep the trace of set -x out of what fails_with looks at.
[ -n "$BASH_XTRACEFD" ] || exec {BASH_XTRACEFD}>&2

# What nbdkit and addcow-img are run with: a time limit, another user.
RUN=()

# How long a refusal may take, in seconds.
limit=5
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || limit=60

addcow_img=$abs_top_builddir/img/addcow-img

nbdkit ()
{
    "${RUN[@]}" env ${_preload:+LD_PRELOAD="$_preload"} "${VG[@]}" \
        "$(type -P nbdkit)" "$@"
}

addcow-img ()
{
    "${RUN[@]}" "${VG[@]}" "$addcow_img" "$@"
}

# as_nobody COMMAND...: for root, to whom every file is readable.  Anybody
# else does it as who they are.
root=
nobody=()
if [ "$(id -u)" -eq 0 ]; then
    # shellcheck disable=SC2034 # for the tests
    root=yes
    nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    requires "${nobody[@]}" true
    # The build may be where nobody may look.
    mkdir -m 755 "$tmp/bin"
    install -m 755 "$addcow" "$addcow_img" "$tmp/bin"
    addcow=$tmp/bin/${addcow##*/}
    addcow_img=$tmp/bin/addcow-img
    if [ -n "$SANITIZER" ]; then
        install -m 755 "$unpreload" "$tmp/bin"
        _preload=${_preload/"$unpreload"/"$tmp/bin/${unpreload##*/}"}
    fi
fi

as_nobody ()
{
    local RUN=("${RUN[@]}" "${nobody[@]}")
    "$@"
}

# metadata FILE size=BYTES [backing=NAME] [image=NAME]: write a metadata
# file without any bit set.
metadata ()
{
    local file=$1 size backing='' image='' i
    shift
    local "$@"
    {
        printf 'ADD_COW\xff\0\0\0\1%s' "$backing"
        head -c $((1024 - ${#backing})) /dev/zero
        printf '%s' "$image"
        head -c $((1024 - ${#image})) /dev/zero
        for i in 56 48 40 32 24 16 8 0; do
            # shellcheck disable=SC2059 # it is a byte
            printf "\\x$(printf %x $((size >> i & 255)))"
        done
    } > "$file"
    truncate -s $((2068 + (size + 4095) / 4096)) -- "$file"
}

# All there is in $tmp/t: names, kinds, modes, lengths and contents.
snapshot ()
{
    find "$tmp/t" -printf '%p %y %m %s %n %l\n' | sort
    find "$tmp/t" -type f -size -64M -readable -print0 | sort -z |
        xargs -0r md5sum
}

keep ()
{
    snapshot > "$tmp/before"
}

# Has nothing been made, changed or removed since keep?
kept ()
{
    snapshot > "$tmp/after"
    diff "$tmp/before" "$tmp/after"
}

# With a sanitizer preloaded, nbdkit without any filter hangs in exit once it
# has printed a message of its own with %m in it: those cannot be tested so.
# nbdkit_says COMMAND...: do it unless that is so.
nbdkit_says ()
{
    [ -n "$SANITIZER" ] || "$@"
}

# in_time COMMAND...: nbdkit and addcow-img in it have only so long.
in_time ()
{
    local RUN=(timeout -k 1 "$limit" "${RUN[@]}")
    "$@"
}

# fails_in_time TEXT COMMAND...: as fails_with.
fails_in_time ()
{
    in_time fails_with "$@"
}

# refused TEXT COMMAND...: that, and it has changed nothing.
refused ()
{
    keep && fails_in_time "$@" && kept
}

# serve PLUGIN PARAMETER...: start a server as the command line says and
# ask it for the size of the disk.
serve ()
{
    # With "-U -", a server that does not start leaves a folder in /tmp.
    rm -f "$tmp/serve"
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -U "$tmp/serve" --filter="$addcow" "$@" \
        --run 'nbdinfo --size "$uri"'
}
