# Two addons: mapdirect.node for the daemon and the commands, mapdirect_client.node for programs that map files (the C
# library of native/client/ with a face for JavaScript). scripts/build-client.mjs makes the C library itself.
# Nothing here names a CPU: code that needs more than the baseline is compiled by function (target attributes) and
# chosen at run time, so that one build serves every machine of its architecture.
{
  "target_defaults": {
    # NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS: a worker thread that is being terminated can run no JavaScript, and what
    # fails for that reason must not end the process.
    "defines": ["_GNU_SOURCE", "_FILE_OFFSET_BITS=64", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
    "cflags": ["-Wall", "-Wextra", "-Wconversion", "-fvisibility=hidden"],
    "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++1y", "-std=gnu++20"]
  },
  "targets": [
    {
      "target_name": "mapdirect",
      "sources": [
        "native/persist/crc32c.cc",
        "native/persist/flush.cc",
        "native/persist/copy.cc",
        "native/region/guard.cc",
        "native/region/devdax.cc",
        "native/region/mapping.cc",
        "native/region/mappers.cc",
        "native/fuse/device.cc",
        "native/fuse/busypoll.cc",
        "native/fuse/ring.cc",
        "native/fuse/channel.cc",
        "native/fuse/notifier.cc",
        "native/fuse/mount.cc",
        "native/napi/failure.cc",
        "native/napi/descriptor_object.cc",
        "native/napi/region_object.cc",
        "native/napi/channel_object.cc",
        "native/napi/system_calls.cc",
        "native/napi/addon.cc"
      ],
      "include_dirs": ["native"],
      # Headers of others are not held to our warnings: -isystem instead of include_dirs.
      "cflags_cc": ["-isystem <(module_root_dir)/<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_DEPRECATED", "NAPI_DISABLE_CPP_EXCEPTIONS"],
      # The SIGBUS handler stays installed for the life of the process, so its code must never be unmapped
      # (Node unloads addons when a worker thread ends).
      "ldflags": ["-Wl,-z,nodelete"]
    },
    {
      "target_name": "mapdirect_client",
      "sources": [
        "native/client/lines.c",
        "native/client/table.c",
        "native/client/keeper.c",
        "native/client/mount.c",
        "native/client/hole.c",
        "native/client/map.c",
        "native/client/change.c",
        "native/client/break.c",
        "native/client/relay.c",
        "native/client/persist.c",
        "native/client/stats.c",
        "native/client/api.c",
        "native/napi/failure.cc",
        "native/napi/client_addon.cc"
      ],
      "include_dirs": ["native"],
      "cflags": ["-pthread"],
      "cflags_c": ["-std=gnu11"],
      "cflags_cc": ["-isystem <(module_root_dir)/<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_DEPRECATED", "NAPI_DISABLE_CPP_EXCEPTIONS"],
      # The library's threads run its code as long as there are mappings.
      "ldflags": ["-Wl,-z,nodelete", "-pthread"]
    }
  ]
}
