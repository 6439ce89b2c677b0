/** docs/FORMAT.md says what the declarations say. UPDATE_DOCS=1 writes its generated parts anew. */
import { readFileSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { toMarkdown } from "../../src/layout/struct.ts";
import * as format from "../../src/media/format.ts";
import { recoveryCases } from "../../src/media/recovery.ts";

const file = new URL("../../docs/FORMAT.md", import.meta.url);

const constants = (values: Readonly<Record<string, number>>): string =>
  [
    "| value | name |",
    "| ---: | --- |",
    ...Object.entries(values).map(([name, value]) => `| ${value} | ${name} |`),
  ].join("\n");

const parts: Record<string, string> = {
  Superblock: toMarkdown(format.Superblock),
  SegmentHeader: toMarkdown(format.SegmentHeader),
  CopyTable: toMarkdown(format.CopyTable),
  GroupHeader: toMarkdown(format.GroupHeader),
  GroupKind: constants(format.GroupKind),
  RecordHeader: toMarkdown(format.RecordHeader),
  RecordType: constants(format.RecordType),
  records: Object.entries(format.recordBodies)
    .map(([name, body]) => `#### ${name}\n\n${body.doc.replace(`${name}: `, "")}\n\n${toMarkdown(body)}`)
    .join("\n\n"),
  recovery: [
    "| label | verdict | why |",
    "| --- | --- | --- |",
    ...recoveryCases.map(({ label, verdict, why }) => `| ${label} | ${verdict} | ${why} |`),
  ].join("\n"),
};

const block = /<!-- begin (\w+) -->\n([\s\S]*?)<!-- end -->/g;

describe("docs/FORMAT.md", () => {
  test("has the tables of the declarations, all of them", () => {
    const text = readFileSync(file, "utf8");
    const written = text.replace(
      block,
      (_, name: string) => `<!-- begin ${name} -->\n\n${parts[name]}\n\n<!-- end -->`,
    );
    if (process.env.UPDATE_DOCS === "1") writeFileSync(file, written);
    expect([...text.matchAll(block)].map((match) => match[1]).sort()).toEqual(Object.keys(parts).sort());
    expect(readFileSync(file, "utf8")).toBe(written);
  });
});

describe("the format", () => {
  test("gives each kind of record a body, and each type a number of its own", () => {
    expect(Object.keys(format.recordBodies)).toEqual(Object.keys(format.RecordType));
    expect(new Set(Object.values(format.RecordType)).size).toBe(Object.keys(format.RecordType).length);
  });

  test("fits what it has to: the superblock into a sector, the longest attribute into a group", () => {
    expect(format.Superblock.size).toBe(512);
    const longest = format.RecordHeader.size + format.XattrRecord.size + 255 + 65536;
    const group = format.GroupHeader.size + longest + 8 + format.RecordHeader.size + format.InodeRecord.size;
    expect(group).toBeLessThan(
      format.SEGMENT_BYTES_MIN - format.SegmentHeader.size - format.LINK_GROUP_BYTES,
    );
    expect(format.LINK_GROUP_BYTES % 8).toBe(0);
    const tables = Object.values(format.COPY_TABLE_OFFSETS).sort((a, b) => a - b);
    for (const [index, at] of tables.entries()) {
      const superblock = format.SUPERBLOCK_OFFSETS[index] as number;
      expect(at).toBeGreaterThanOrEqual(superblock + format.Superblock.size);
      expect(at + format.COPY_TABLE_BYTES_MAX).toBeLessThanOrEqual(superblock + 65536);
    }
    for (const offset of format.SUPERBLOCK_OFFSETS)
      expect(offset + format.Superblock.size).toBeLessThanOrEqual(format.RESERVED_BYTES);
  });
});
