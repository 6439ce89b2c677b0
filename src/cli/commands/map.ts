/** map: the blocks of a volume as a picture. */
import { writeFileSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { Command } from "commander";
import { atOnce } from "../../base/slices.ts";
import { ask, withOpen } from "../../daemon/client.ts";
import { asFailure, Failure, usage } from "../../daemon/failure.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { MAP_CELLS_MAX } from "../../lease/wire.ts";
import { type MapReport, mapReport } from "../../session/blockmap.ts";
import { print, table, toJson } from "../output.ts";
import { COLUMNS, count, pictureOf, STYLES } from "../picture.ts";
import { readVolume, whereIs } from "../volumes.ts";

interface MapFlags {
  svg?: string;
  png?: string;
  json: boolean;
  dark: boolean;
  light: boolean;
  cells: string;
}

const CELLS = COLUMNS * 64;

export function mapCommand(): Command {
  return new Command("map")
    .summary("draw the blocks of a volume")
    .description(
      "Draw which blocks of a volume are free, metadata, data of files, unwritten, shared, sealed, leased, breaking or\n" +
        "quarantined. Large volumes have many blocks in a cell, which shows them in proportion. Without --svg, --png or\n" +
        "--json, print how much there is of each. Of a mounted volume: for root and whoever mounted it.",
    )
    .argument("<path>", "a region, or where it is mounted")
    .option("--svg <file>", "write the picture as SVG; - for standard output")
    .option("--png <file>", "write the picture as PNG")
    .option("--json", "print the counts behind the picture", false)
    .option("--dark", "colours for a dark background", false)
    .option("--light", "colours for a light background (default of --png; --svg follows the reader)", false)
    .option("--cells <number>", `how many cells to draw, at most ${MAP_CELLS_MAX}`, `${CELLS}`)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect map /mnt
  mapdirect map --svg map.svg /srv/volume.region
  mapdirect map --png map.png --dark /mnt`,
    )
    .action(map);
}

async function map(path: string, flags: MapFlags): Promise<void> {
  if (flags.dark && flags.light) throw usage("map", "--dark and --light contradict each other", "give one");
  const cells = Number(flags.cells);
  if (!/^[1-9]\d*$/.test(flags.cells) || cells > MAP_CELLS_MAX)
    throw usage(
      `--cells ${flags.cells}`,
      `it wants a whole number up to ${MAP_CELLS_MAX}`,
      "see 'mapdirect map --help'",
    );
  const report = await reportOn(path, cells);
  const name = report.label === "" ? basename(path) : `${report.label} (${basename(path)})`;
  if (flags.svg !== undefined) {
    const svg = pictureOf(report, name, flags.dark ? "dark" : flags.light ? "light" : "auto");
    if (flags.svg === "-") print(svg);
    else write(flags.svg, svg);
  }
  if (flags.png !== undefined)
    write(flags.png, await toPng(pictureOf(report, name, flags.dark ? "dark" : "light")));
  if (flags.json) print(toJson(report));
  else if (flags.svg === undefined && flags.png === undefined) print(inWords(report));
}

export async function reportOn(path: string, cells: number): Promise<MapReport> {
  const found = whereIs(path);
  if (found.mounted) return withOpen(found.path, (descriptor) => ask(descriptor, "MAP", cells)) as MapReport;
  return await readVolume(found.path, (volume) => atOnce(mapReport(volume, cells, "")));
}

function write(file: string, content: string | Uint8Array): void {
  try {
    writeFileSync(file, content);
  } catch (error) {
    throw asFailure(error, file, "choose another file");
  }
}

/** Twice as large, for screens that have the pixels. */
const ZOOM = 2;

async function toPng(svg: string): Promise<Uint8Array> {
  let resvg: typeof import("@resvg/resvg-js");
  let font: string;
  try {
    resvg = await import("@resvg/resvg-js");
    // Brought along: a server need not have any.
    font = fileURLToPath(import.meta.resolve("@expo-google-fonts/pt-sans/400Regular/PTSans_400Regular.ttf"));
  } catch {
    throw new Failure("--png", "@resvg/resvg-js is not installed, or not for this machine", "use --svg");
  }
  const options = {
    font: { fontFiles: [font], loadSystemFonts: false, defaultFontFamily: "PT Sans" },
    fitTo: { mode: "zoom" as const, value: ZOOM },
  };
  return new resvg.Resvg(svg, options).render().asPng();
}

function inWords(report: MapReport): string {
  const rows = Object.entries(STYLES).map(([state, { title }]) => {
    const bytes = report.totals[state] ?? 0;
    return [title, `${bytes}`, formatSize(bytes), `${((100 * bytes) / report.size).toFixed(1)} %`];
  });
  const about = `${formatSize(report.size)}, ${count(report.files, "file")} in ${count(report.extents, "extent")}, ${count(report.leases, "lease")}`;
  return `${about}\n${table(["state", "bytes", "size", "share"], rows)}`;
}
