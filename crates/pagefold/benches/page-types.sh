#!/usr/bin/env bash
# Builds the kernel's own page-types, the peer of benches/scan.rs, from Debian's kernel source package into
# target/peers/page-types. Needs apt, gcc and make; nothing of it becomes part of this repository. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../../.."
peers=$PWD/target/peers
[ ! -x "$peers/page-types" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# The newest that apt has.
package=$(apt-cache search --names-only '^linux-source-[0-9.]+$' | awk '{ print $1 }' | sort -V | tail -n 1)
[ -n "$package" ] || { echo "apt knows no linux-source package (apt-get update?)" >&2; exit 1; }
apt-get download -qq -o APT::Sandbox::User=root "$package"
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO --wildcards '*.tar.xz' | tar -xJ --strip-components=1 --wildcards \
    '*/tools/mm/*' '*/tools/include/*' '*/tools/lib/*' '*/tools/scripts/*' '*/tools/build/*' \
    '*/include/uapi/linux/magic.h' '*/include/uapi/linux/kernel-page-flags.h'
make -s -C tools/lib/api >/dev/null
mkdir -p "$peers"
gcc -O2 -Itools/lib -o "$peers/page-types" tools/mm/page-types.c tools/lib/api/libapi.a -pthread
echo "$peers/page-types, from $package"
