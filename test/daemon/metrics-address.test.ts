/** Where metrics may be shown: nowhere that another machine reaches. */
import { expect, test } from "vitest";
import { parseMetricsAddress } from "../../src/daemon/metrics-address.ts";

test.each([
  ["9464", { kind: "port", host: "127.0.0.1", port: 9464 }],
  ["127.0.0.1:9464", { kind: "port", host: "127.0.0.1", port: 9464 }],
  ["localhost:1", { kind: "port", host: "127.0.0.1", port: 1 }],
  ["[::1]:65535", { kind: "port", host: "::1", port: 65535 }],
  ["unix:/run/m.sock", { kind: "socket", path: "/run/m.sock" }],
  ["file:/var/lib/m.prom", { kind: "file", path: "/var/lib/m.prom" }],
])("%s", (text, expected) => {
  expect(parseMetricsAddress(text)).toEqual(expected);
});

test.each([
  "0.0.0.0:9464",
  "[::]:9464",
  "192.168.1.2:9464",
  "example.org:9464",
  "127.0.0.1",
  "127.0.0.1:65536",
  "127.1:80",
  "[::ffff:192.168.1.2]:80",
  "unix:m.sock",
  "unix:/run/",
  `unix:/${"x".repeat(108)}`,
  "file:m.prom",
  "",
  ":9464",
])("'%s' is refused", (text) => {
  expect(parseMetricsAddress(text)).toBeUndefined();
});
