/** Where a daemon's log goes, as users write it: --log and the mount option log=. */

export type LogTarget =
  | { readonly kind: "none" }
  | { readonly kind: "syslog" }
  /** An absolute path. */
  | { readonly kind: "file"; readonly path: string };

export const LOG_WANTS = "none, syslog or the absolute path of a file";

export function parseLogTarget(text: string): LogTarget | undefined {
  if (text === "none" || text === "syslog") return { kind: text };
  return text.startsWith("/") && !text.endsWith("/") && !text.includes("\0")
    ? { kind: "file", path: text }
    : undefined;
}

export const showLogTarget = (target: LogTarget): string =>
  target.kind === "file" ? target.path : target.kind;
