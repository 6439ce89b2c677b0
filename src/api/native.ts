/** The client library as an addon (native/napi/client_addon.cc). Offsets and lengths are bytes. */
import { loadNative } from "../region/addon.ts";

declare const brand: unique symbol;

/** A mapping, for the addon. */
export interface Handle {
  readonly [brand]: true;
}

export interface NativeMapping {
  readonly memory: ArrayBuffer;
  readonly handle: Handle;
  readonly leaseId: bigint;
  readonly generation: bigint;
  readonly kind: number;
  readonly cacheline: boolean;
}

export interface NativeBreak {
  readonly leaseId: bigint;
  readonly offset: bigint;
  readonly length: bigint;
  readonly remainingMs: number;
  readonly reason: number;
}

/** Rejections and what is thrown are errors with `code` and `errno`. */
export interface ClientAddon {
  readonly version: string;
  /**
   * `lease`: the argument of mapdirect_map(3). `onBreak` is called once at most; the memory has to be released then. ERANGE: the
   * range reaches past the file's last block, where every access would raise SIGBUS.
   */
  map(
    descriptor: number,
    offset: number,
    length: number,
    lease: number,
    sync: boolean,
    onBreak: (notice: NativeBreak) => void,
  ): Promise<NativeMapping>;
  prepare(descriptor: number, offset: number, length: number): Promise<void>;
  /** Detaches `memory` at once; resolves when the lease has ended. */
  release(handle: Handle, memory: ArrayBuffer): Promise<void>;
  persist(handle: Handle, offset: number, length: number): Promise<void>;
  persistSync(handle: Handle, offset: number, length: number): void;
  locate(handle: Handle, offset: number, length: number): { state: number; physical: bigint; length: number };
}

let loaded: ClientAddon | undefined;

export function client(): ClientAddon {
  loaded ??= loadNative("mapdirect_client") as ClientAddon;
  return loaded;
}
