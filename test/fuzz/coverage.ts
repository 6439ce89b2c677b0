/**
 * Which blocks of src/ were reached since the last call, from V8's own block coverage. Taking it costs as much as a mount of a
 * small image does, so fuzzer.ts takes it for several inputs at a time.
 */
import { Session } from "node:inspector";

interface Reached {
  readonly result: readonly {
    readonly scriptId: string;
    readonly url: string;
    readonly functions: readonly {
      readonly ranges: readonly { readonly startOffset: number; readonly count: number }[];
    }[];
  }[];
}

/** No source file is longer, characters. */
const OFFSETS = 2 ** 24;

export class Coverage {
  readonly #session = new Session();

  constructor() {
    this.#session.connect();
    this.#post("Profiler.enable");
    this.#post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  }

  /** One number for each block reached since the last call. They mean something within this process alone. */
  take(): number[] {
    const blocks: number[] = [];
    const { result } = this.#post("Profiler.takePreciseCoverage") as Reached;
    for (const { scriptId, url, functions } of result) {
      if (!url.includes("/src/")) continue;
      for (const { ranges } of functions) {
        for (const { startOffset, count } of ranges) {
          if (count > 0) blocks.push(Number(scriptId) * OFFSETS + startOffset);
        }
      }
    }
    return blocks;
  }

  close(): void {
    this.#post("Profiler.stopPreciseCoverage");
    this.#session.disconnect();
  }

  /** The inspector of one's own thread answers before post() returns. */
  #post(method: string, parameters?: object): unknown {
    let answer: unknown;
    this.#session.post(method, parameters, (error, result) => {
      if (error !== null) throw error;
      answer = result;
    });
    return answer;
  }
}
