#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The filter's parameters, and which files they and the names in the header
# mean: it is seen where the base's data come from and where writes go.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires nbdinfo --version
requires_plugin eval
source "$abs_srcdir/bad-input.sh"

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

### What is wrong with them.

keep
fails_in_time "the parameter addcow=FILE is required" serve file
fails_in_time "the parameter addcow=FILE is required" serve file vm.raw
fails_in_time "the parameter addcow=FILE is required" \
    serve file addcow-commit-interval=1
fails_in_time "addcow= needs a value" serve file addcow=
fails_in_time "addcow= was given more than once" \
    serve file addcow=vm.add-cow addcow=vm.add-cow
for name in addcow-foo addcow- addcow-commit addcow-commit-intervals \
            addcow-Commit-interval; do
    fails_in_time "unknown parameter '$name'" \
        serve file addcow=vm.add-cow $name=1
done
for value in x -1 '' ' ' 1x 1.5 5s 0x; do
    fails_in_time "addcow-commit-interval" \
        serve file addcow=vm.add-cow addcow-commit-interval="$value"
done
for value in x '' 1Q -1M 1.5.5M; do
    nbdkit_says fails_in_time "" \
        serve file addcow=vm.add-cow addcow-cache-size="$value"
done
for value in 0 1 1048575 1023k; do
    fails_in_time "addcow-cache-size= must be at least 1M" \
        serve file addcow=vm.add-cow addcow-cache-size=$value
done
nbdkit_says fails_in_time "addcow-commit-interval" \
    serve file addcow=vm.add-cow addcow-commit-interval=99999999999
for name in dir directory; do
    fails_in_time "$name= cannot be used with addcow=FILE" \
        serve file addcow=vm.add-cow $name=.
    fails_in_time "$name= cannot be used with addcow=FILE" \
        serve file $name=. addcow=vm.add-cow
done
# The plugin is found behind any option that has a value, and any filter.
for option in '-D nbdkit.backend.controlpath=1' '-e x' '--export=x' '--export-name x' \
        '-i 127.0.0.1' '--ipaddr 127.0.0.1' '--log stderr' \
        '--mask-handshake 0' '-P /nowhere/pid' '--pidfile /nowhere/pid' \
        '--run true' '-t 1' '--threads 1' '--tls off' \
        '--tls-certificates /nowhere' '--tls-psk /dev/null' '-f' '-r' \
        '--filter=nofilter'; do
    # shellcheck disable=SC2086
    fails_in_time "dir= cannot be used with addcow=FILE" \
        nbdkit $option -U "$tmp/serve" --filter="$addcow" file \
        addcow=vm.add-cow dir=.
done
fails_in_time "dir= cannot be used with addcow=FILE" \
    nbdkit -U "$tmp/serve" --filter="$addcow" --filter=offset file \
    addcow=vm.add-cow dir=.
# A folder.
fails_in_time "overlays can be served over nbdkit-file-plugin alone" \
    serve memory 64K addcow=.
for name in file dir directory; do
    fails_in_time "$name= cannot be used with addcow=FOLDER" \
        serve file addcow=. $name=.
    fails_in_time "$name= cannot be used with addcow=FOLDER" \
        serve file $name=vm.raw addcow=.
done
fails_in_time "without a filter between" \
    nbdkit -U "$tmp/serve" --filter="$addcow" --filter=cow file addcow=.
fails_in_time "addcow-hydrate needs a disk that can be written to" \
    serve -r file addcow=. addcow-hydrate=true
fails_in_time "nowhere: No such file or directory" \
    serve file addcow=. addcow-confine=nowhere
fails_in_time "addcow-confine= was given more than once" \
    serve file addcow=. addcow-confine=none addcow-confine=.
# A plugin that would take anything is not asked.
anything=(get_size='echo 65536' pread='head -c $3 /dev/zero' config='exit 0')
metadata own.add-cow size=$size backing=base.img
keep
fails_in_time "unknown parameter 'addcow-foo'" \
    serve eval addcow=own.add-cow "${anything[@]}" addcow-foo=1
serve eval addcow=own.add-cow "${anything[@]}" foo=1
serve eval addcow=own.add-cow "${anything[@]}" dir=.
# A file plugin that does: what only begins like dir= is no folder.
plugindir=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
ln -s "$plugindir/nbdkit-eval-plugin.so" "$tmp/nbdkit-file-plugin.so"
for name in dir directory dirfd; do
    fails_in_time "$name= cannot be used with addcow=FILE" \
        serve "$tmp/nbdkit-file-plugin.so" addcow=own.add-cow \
        "${anything[@]}" $name=.
done
for name in dirx direct direct-io directories; do
    serve "$tmp/nbdkit-file-plugin.so" addcow=own.add-cow "${anything[@]}" \
        $name=1
done
# A name of its own, not the plugin's.
fails_in_time "unknown parameter 'addcow2'" \
    serve file addcow=vm.add-cow addcow2=vm.add-cow
for value in 0 1 86400; do
    serve file addcow=vm.add-cow addcow-commit-interval=$value
    serve file addcow-commit-interval=$value addcow=vm.add-cow
done
for value in 1M 1048576 32M 1T; do
    serve file addcow=vm.add-cow addcow-cache-size=$value
done
kept

### Which file is the image.

cat > "$tmp/touch.py" <<'PY'
import sys, nbd

uri, mark = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
base = open(b"/proc/self/fd/3", "rb").read()
assert h.pread(len(base), 0) == base
h.pwrite(mark.encode() * 512, 512)
h.shutdown()
PY

# writes_to IMAGE BASE ARGUMENT...: that is what these arguments mean, run
# in $folder.
folder=.
n=0
writes_to ()
{
    local image=$1 base=$2 i mark=$((n++ % 10)) sum
    shift 2
    sum=$(md5sum < "$base")
    (
        cd $folder
        nbdkit -U - --filter="$addcow" "$@" \
            --run "/usr/bin/python3 $tmp/touch.py \"\$uri\" $mark"
    ) 3< "$base"
    [ "$(dd if="$image" bs=512 skip=1 count=1 status=none | tr -d $mark |
         wc -c)" -eq 0 ]
    [ "$sum" = "$(md5sum < "$base")" ]
    # Nothing else has any data.
    for i in vm.raw moved/*.raw other/*.raw; do
        [ "$i" -ef "$image" ] || [ "$(stat -c %b "$i")" -eq 0 ]
    done
    fallocate -p -l $size -- "$image"
    metadata "${metadata:-vm.add-cow}" size=$size \
        backing="$header_backing" image="$header_image"
}
header_image=vm.raw
header_backing=base.img

mkdir moved other
truncate -s $size moved/vm.raw moved/x.raw other/vm.raw other/x.raw

writes_to vm.raw base.img file addcow=vm.add-cow
writes_to vm.raw base.img file addcow="$PWD/vm.add-cow"
writes_to moved/x.raw base.img file addcow=vm.add-cow file=moved/x.raw
writes_to moved/x.raw base.img file file=moved/x.raw addcow=vm.add-cow
writes_to moved/x.raw base.img file addcow=vm.add-cow moved/x.raw
writes_to moved/x.raw base.img file moved/x.raw addcow=vm.add-cow
writes_to moved/x.raw base.img file addcow=vm.add-cow \
    file="$PWD/moved/x.raw"
writes_to moved/x.raw base.img file "$PWD/moved/x.raw" addcow=vm.add-cow
writes_to vm.raw base.img file addcow=vm.add-cow file=vm.raw

# From another folder: names in the header are relative to that of the
# metadata file, parameters to the current one.
folder=other
writes_to vm.raw base.img file addcow=../vm.add-cow
writes_to vm.raw base.img file addcow="$PWD/vm.add-cow"
writes_to other/vm.raw base.img file addcow=../vm.add-cow file=vm.raw
writes_to other/vm.raw base.img file vm.raw addcow=../vm.add-cow
ln -s ../vm.add-cow other/link.add-cow
ln -s other/link.add-cow link-to-link
writes_to vm.raw base.img file addcow=link.add-cow
writes_to vm.raw base.img file addcow=../link-to-link
# Through a link to the folder, ".." is the real one's.
ln -s "$PWD/moved" other/there
metadata=moved/up.add-cow header_image=../other/x.raw
header_backing=../base.img
metadata moved/up.add-cow size=$size \
    backing=$header_backing image=$header_image
writes_to other/x.raw base.img file addcow=there/up.add-cow
# In the background a server is in / and finds its files none the less.
folder=.
(
    cd moved
    nbdkit -P "$tmp/pid" -U "$tmp/sock" --filter="$addcow" file \
        addcow=up.add-cow
)
for ((i = 0; i < 100; i++)); do
    if [ -s "$tmp/pid" ]; then break; fi
    sleep 0.1
done
server=$(cat "$tmp/pid")
cleanup_fn "kill $server 2>/dev/null || :"
/usr/bin/python3 "$tmp/touch.py" "nbd+unix://?socket=$tmp/sock" b 3< base.img
kill "$server"
while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
[ "$(tr -d '\0' < other/x.raw | tr -d b | wc -c)" -eq 0 ]
[ "$(tr -d '\0' < other/x.raw | wc -c)" -eq 512 ]
fallocate -p -l $size other/x.raw

# The image was moved: the one in the header is not there.
metadata=vm.add-cow header_image=gone.raw header_backing=base.img
metadata vm.add-cow size=$size backing=base.img image=gone.raw
writes_to moved/vm.raw base.img file addcow=vm.add-cow file=moved/vm.raw
writes_to moved/vm.raw base.img file moved/vm.raw addcow=vm.add-cow
# Nor is it looked at.
header_image=/dev/null
metadata vm.add-cow size=$size backing=base.img image=$header_image
writes_to moved/vm.raw base.img file addcow=vm.add-cow file=moved/vm.raw
header_image=nbd://localhost
metadata vm.add-cow size=$size backing=base.img image=$header_image
writes_to moved/vm.raw base.img file addcow=vm.add-cow file=moved/vm.raw
header_image=
metadata vm.add-cow size=$size backing=base.img
writes_to moved/vm.raw base.img file addcow=vm.add-cow file=moved/vm.raw
writes_to moved/vm.raw base.img file moved/vm.raw addcow=vm.add-cow

### Names.

# names IMAGE BASE METADATA
names ()
{
    header_image=$1 header_backing=$2 metadata=$3
    truncate -s $size -- "$1"
    cp -- base.img "$2"
    metadata "$3" size=$size backing="$2" image="$1"
    writes_to "$1" "$2" file addcow="$3"
    writes_to "$1" "$2" file addcow="./$3" file="$1"
    writes_to moved/x.raw "$2" file addcow="$PWD/$3" file=moved/x.raw
}

names ' vm  1.raw ' 'base 1.img ' ' vm 1.add-cow'
names $'vm\n2.raw\n' $'\nbase\n\n2' $'vm\n2.add-cow'
names $'vm\xff\xfe\x80.raw' $'\xc3base' $'vm\xff.add-cow'
names ./vm:4.raw ./base:4.img vm:4.add-cow
names 'vm=5.raw' 'base=5.img' 'vm=5.add-cow'
# shellcheck disable=SC2016 # these are names
names '"$(6)".raw' '\base%s%n' '*6?.add-cow'
names -7.raw --8.img -9.add-cow
names 1 2 3

# As long as the header has room for; one is enough to see that they are
# not cut.
deep=
for c in a b c d; do
    deep=$deep$(printf "%0200d" 0 | tr 0 $c)/
done
mkdir -p "$deep"
image=$deep$(printf '%0219d' 1)
base=$deep$(printf '%0219d' 2)
[ ${#image} -eq 1023 ] && [ ${#base} -eq 1023 ]
names "$image" "$base" long.add-cow
