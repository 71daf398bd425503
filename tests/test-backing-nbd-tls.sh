#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A backing file over NBD with TLS: with the right key, and with the right
# certificates, it is read; anything else is refused when the server starts,
# and so is one of the two sides that has no TLS.

source ./functions.sh
set -e
set -x

requires psktool --version
requires certtool --version
requires bash -c 'nbdkit --dump-config | grep -x tls=yes'
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
limit=$((limit * 5))

random_file base.img 300000
mkdir keys
psktool -u alice -p keys/both
psktool -u bob -p keys/both
grep ^alice: keys/both > keys/alice
psktool -u alice -p keys/wrong
sed s/^alice:/carol:/ keys/alice > keys/carol
echo 'alice:zz' > keys/garbage
: > keys/empty

cat > read.py <<'PY'
import sys
from nbd_client import *
h = connect(sys.argv[1])
disk = bytearray(open("base.img", "rb").read() + bytes(32))
assert content(h) == disk
try_writes(h, disk, 1, 100)
h.shutdown()
PY

# accepted NAME
accepted ()
{
    rm -f vm.*
    addcow-img create -b "$1" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python read.py "$uri"
    stop_nbdkit "$pid"
}

# not_accepted TEXT NAME: with TEXT in the message, in lower case.
not_accepted ()
{
    rm -f vm.* new.*
    addcow-img create -b base.img vm.add-cow
    fails_in_time "$2: " serve file addcow=vm.add-cow addcow-backing="$2"
    grep -i -- "$2: .*$1" "$tmp/stderr"
    fails_in_time "$2: " addcow-img create -b "$2" new.add-cow
    grep -i -- "$2: .*$1" "$tmp/stderr"
    ! ls new.*
}

### Keys.

key="tls-psk-file=$PWD/keys"
start_base tls --tls=require --tls-psk=keys/both -r file base.img
here="@/?socket=$tmp/tls"
accepted "nbds+unix://alice$here&$key/alice"
accepted "nbds+unix://alice$here&$key/both"
accepted "nbds+unix://bob$here&$key/both"
not_accepted tls "nbds+unix://alice$here&$key/wrong"
not_accepted tls "nbds+unix://carol$here&$key/carol"
# No key for that user, no such file, no file.
not_accepted "username bob" "nbds+unix://bob$here&$key/alice"
not_accepted "no such file" "nbds+unix://alice$here&$key/missing"
not_accepted tls "nbds+unix://alice$here&$key/garbage"
not_accepted "username alice" "nbds+unix://alice$here&$key/empty"
not_accepted tls "nbds+unix://alice$here"
# No TLS.
not_accepted "requires tls" "nbd+unix:///?socket=$tmp/tls"
not_accepted "requires tls" "nbd:unix:$tmp/tls"
stop_nbdkit "$base_pid"

start_tcp --tls=require --tls-psk=keys/both -r file base.img
accepted "nbds://alice@localhost:$base_port/?$key/alice"
not_accepted tls "nbds://alice@localhost:$base_port/?$key/wrong"
not_accepted tls "nbd://localhost:$base_port/"
end "$base_pid"

# The server does what it is asked for.
start_base tls --tls=on --tls-psk=keys/both -r file base.img
accepted "nbds+unix://alice$here&$key/alice"
accepted "nbd+unix:///?socket=$tmp/tls"
not_accepted tls "nbds+unix://alice$here&$key/wrong"
stop_nbdkit "$base_pid"

# The server has none.
start_base tls -r file base.img
not_accepted "refused tls" "nbds+unix://alice$here&$key/alice"
stop_nbdkit "$base_pid"

### Certificates.

# authority FOLDER: one that vouches for a server on localhost.
authority ()
{
    mkdir "$1"
    certtool --generate-privkey --sec-param low --outfile "$1/ca-key.pem"
    printf 'cn = "%s"\nca\ncert_signing_key\n' "$1" > template
    certtool --generate-self-signed --load-privkey "$1/ca-key.pem" \
        --template template --outfile "$1/ca-cert.pem"
    certtool --generate-privkey --sec-param low --outfile "$1/server-key.pem"
    printf 'cn = "localhost"\ndns_name = "localhost"\ntls_www_server\n' \
        > template
    certtool --generate-certificate --load-privkey "$1/server-key.pem" \
        --load-ca-certificate "$1/ca-cert.pem" \
        --load-ca-privkey "$1/ca-key.pem" --template template \
        --outfile "$1/server-cert.pem"
}
authority good
authority other
mkdir trusting distrusting
cp good/ca-cert.pem trusting
cp other/ca-cert.pem distrusting

start_tcp --tls=require --tls-certificates=good -r file base.img
trusting="?tls-certificates=$PWD/trusting"
accepted "nbds://localhost:$base_port/$trusting"
not_accepted certificate \
    "nbds://localhost:$base_port/?tls-certificates=$PWD/distrusting"
# It is not who was asked for.
not_accepted certificate "nbds://127.0.0.1:$base_port/$trusting"
# Certificates that cannot be read check nothing: nobody is believed then.
unchecked="the server cannot be checked: there is no ca-cert.pem"
mkdir none "a space"
cp good/ca-cert.pem "a space"
accepted "nbds://localhost:$base_port/?tls-certificates=$PWD/a%20space"
for folder in none missing a%2 %; do
    not_accepted "$unchecked" \
        "nbds://localhost:$base_port/?tls-certificates=$PWD/$folder"
done

# Nor when that happens while they are needed again.
rm -f vm.*
addcow-img create -b "nbds://localhost:$base_port/$trusting" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-backing-timeout=$lost_seconds 2>log
nbdsh -u "$uri" -c 'h.pread(512, 0)'
mv trusting/ca-cert.pem moved
end "$base_pid" KILL
nbdsh -u "$uri" -c '
try:
    h.pread(512, 512)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e'
cat log
grep -F "cannot connect: $unchecked" log
