#!/bin/sh
# Gives node-b the authority that node-a made: a private key, which passes through this pipe and no file of the host's.
set -eu
authority=$1
cd "$(dirname "$0")"
vagrant ssh node-a -- -T "sudo cat $authority" | vagrant ssh node-b -- -T "sudo install -m 600 /dev/stdin $authority"
