#!/bin/sh
# The command mapdirect, and mount.mapdirect and fsck.mapdirect by these names: with the first Node.js that is new enough.
program=mapdirect.js
case $0 in
  */mount.*) program=mount-helper.js ;;
  */fsck.*) program=fsck-helper.js ;;
esac
for node in "$MAPDIRECT_NODE" node /usr/local/bin/node /usr/bin/node; do
  [ -n "$node" ] || continue
  version=$("$node" --version 2> /dev/null) || continue
  major=${version#v}
  if [ "${major%%.*}" -ge 20 ] 2> /dev/null; then
    exec "$node" "/usr/lib/mapdirect/dist/bin/$program" "$@"
  fi
  found="${found:+$found, }$version"
done
echo "mapdirect: node: Node.js 20 or newer is needed, ${found:-none} was found; install one, or name it in MAPDIRECT_NODE" >&2
exit 1
