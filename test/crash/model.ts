/**
 * What a folder must hold after a log of operations (test/crash/load.mjs): names, and which bytes each holds.
 *
 * Invariant: an operation is applied whole or not at all, as the file system promises.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

export type Operation =
  | { op: "create" | "unlink" | "mkdir" | "rmdir" | "fsync"; name: string }
  | { op: "write"; name: string; offset: number; length: number; fill: number }
  | { op: "truncate"; name: string; size: number }
  | { op: "rename" | "link"; from: string; to: string };

interface File {
  data: Buffer;
}

export class Model {
  readonly files = new Map<string, File>();
  readonly folders = new Set<string>();

  clone(): Model {
    const copy = new Model();
    const seen = new Map<File, File>();
    for (const [name, file] of this.files) {
      const own = seen.get(file) ?? { data: Buffer.from(file.data) };
      seen.set(file, own);
      copy.files.set(name, own);
    }
    for (const name of this.folders) copy.folders.add(name);
    return copy;
  }

  apply(operation: Operation): void {
    switch (operation.op) {
      case "create":
        this.files.set(operation.name, { data: Buffer.alloc(0) });
        return;
      case "write": {
        const file = this.#file(operation.name);
        const end = operation.offset + operation.length;
        if (end > file.data.length) file.data = Buffer.concat([file.data], end);
        file.data.fill(operation.fill, operation.offset, end);
        return;
      }
      case "truncate": {
        const file = this.#file(operation.name);
        file.data = Buffer.concat([file.data], operation.size);
        return;
      }
      case "rename": {
        const file = this.#file(operation.from);
        // Two names of one file: POSIX says that nothing happens.
        if (this.files.get(operation.to) === file) return;
        this.files.set(operation.to, file);
        this.files.delete(operation.from);
        return;
      }
      case "link":
        this.files.set(operation.to, this.#file(operation.from));
        return;
      case "unlink":
        this.files.delete(operation.name);
        return;
      case "mkdir":
        this.folders.add(operation.name);
        return;
      case "rmdir":
        this.folders.delete(operation.name);
        return;
      case "fsync":
        return;
    }
  }

  #file(name: string): File {
    const file = this.files.get(name);
    if (file === undefined) throw new Error(`the log uses ${name}, which it never made`);
    return file;
  }

  /** The first difference between the model and a folder, in words; undefined if there is none. */
  differenceFrom(folder: string): string | undefined {
    const names = new Set<string>();
    for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true })) {
      const path = join(entry.parentPath, entry.name).slice(folder.length + 1);
      names.add(path);
      if (entry.isDirectory() ? !this.folders.has(path) : !this.files.has(path))
        return `${path} should not exist`;
    }
    for (const name of [...this.folders, ...this.files.keys()])
      if (!names.has(name)) return `${name} is missing`;
    for (const [name, { data }] of this.files) {
      const { size } = statSync(join(folder, name));
      if (size !== data.length) return `${name} has ${size} bytes, should have ${data.length}`;
      const found = readFileSync(join(folder, name));
      if (!found.equals(data)) {
        const at = found.findIndex((byte, index) => byte !== data[index]);
        return `${name} differs at byte ${at} of ${size}: ${found[at]}, should be ${data[at]}`;
      }
    }
    return undefined;
  }
}

export interface Log {
  /** Operations that returned. */
  done: Operation[];
  /** The one that had begun and did not return. */
  pending: Operation | undefined;
  /** What went wrong that should not have. */
  complaint: string | undefined;
}

export function parseLog(text: string): Log {
  const log: Log = { done: [], pending: undefined, complaint: undefined };
  const lines = text.split("\n");
  // Without its newline the last line is a write that was cut short.
  for (const line of lines.slice(0, -1)) {
    if (line.startsWith("> ")) log.pending = JSON.parse(line.slice(2)) as Operation;
    else if (line.startsWith("<")) {
      if (log.pending !== undefined) log.done.push(log.pending);
      log.pending = undefined;
    } else if (line.startsWith("!")) {
      log.complaint = text.slice(text.indexOf("\n! ") + 3);
      break;
    }
  }
  return log;
}
