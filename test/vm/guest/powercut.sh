#!/bin/sh
# What the load says goes to a file on the host, past the guest's memory: it is what was acknowledged.
exec "$GUEST_NODE" /run/project/test/vm/guest/powercut.mjs >> /run/out/log
