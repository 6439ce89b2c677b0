/**
 * Colours where they help, and nowhere else: on a terminal that has them, unless NO_COLOR is set (no-color.org). What a
 * program reads (a pipe, a file, --json) never has any.
 */
import pc from "picocolors";

type Stream = Pick<NodeJS.WriteStream, "isTTY"> & { hasColors?: () => boolean };

/** Node knows of NO_COLOR, FORCE_COLOR and TERM=dumb; that an empty NO_COLOR counts as none, it does not. */
export function hasColours(stream: Stream, environment: NodeJS.ProcessEnv = process.env): boolean {
  if (stream.isTTY !== true) return false;
  if ((environment.NO_COLOR ?? "") !== "") return false;
  return environment.TERM !== "dumb" && stream.hasColors?.() === true;
}

export type Colours = ReturnType<typeof pc.createColors>;

export const coloursFor = (stream: Stream): Colours => pc.createColors(hasColours(stream));

/** A lease's state, or a state of blocks, as it looks on a terminal. */
export function stateColour(colours: Colours, state: string): (text: string) => string {
  if (state === "breaking") return (text) => colours.bold(colours.red(text));
  if (state === "revoked" || state === "ended" || state === "quarantined") return colours.magenta;
  return String;
}
