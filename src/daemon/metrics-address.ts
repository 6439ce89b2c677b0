/** Where metrics are shown, as a user names it. Pure. */
import { isIPv4, isIPv6 } from "node:net";
import { isAbsolute } from "node:path";

export type MetricsAddress =
  | { readonly kind: "port"; readonly host: string; readonly port: number }
  | { readonly kind: "socket"; readonly path: string }
  | { readonly kind: "file"; readonly path: string };

export const METRICS_WANTS = "a loopback address (127.0.0.1:9464), unix:/path or file:/path.prom";

/** Undefined for what is no address, or reachable from elsewhere. */
export function parseMetricsAddress(text: string): MetricsAddress | undefined {
  const at = /^(unix|file):(.+)$/.exec(text);
  if (at !== null) {
    const path = at[2] as string;
    // sun_path has 108 bytes, the last of them NUL.
    if (!isAbsolute(path) || path.includes("\0") || path.endsWith("/")) return undefined;
    if (at[1] === "file") return { kind: "file", path };
    return Buffer.byteLength(path) < 108 ? { kind: "socket", path } : undefined;
  }
  const match = /^(?:(localhost|[0-9.]+|\[[0-9a-fA-F:]+\]):)?([0-9]{1,5})$/.exec(text);
  if (match === null) return undefined;
  const port = Number(match[2]);
  const host = (match[1] ?? "127.0.0.1").replace(/^\[|\]$/g, "").replace("localhost", "127.0.0.1");
  if (port > 65535 || !isLoopback(host)) return undefined;
  return { kind: "port", host, port };
}

export function isLoopback(host: string): boolean {
  return (isIPv4(host) && host.startsWith("127.")) || (isIPv6(host) && host === "::1");
}

export function showMetricsAddress(address: MetricsAddress): string {
  if (address.kind === "file") return `file:${address.path}`;
  if (address.kind === "socket") return `unix:${address.path}`;
  return `${isIPv6(address.host) ? `[${address.host}]` : address.host}:${address.port}`;
}
