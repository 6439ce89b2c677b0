/** The three forms of the log. */
import { expect, test } from "vitest";
import type { LogFormat } from "../../src/daemon/log.ts";
import { createLog } from "../../src/daemon/logger.ts";

function linesOf(format: LogFormat, tell: (log: ReturnType<typeof createLog>) => void): string {
  let text = "";
  tell(
    createLog({
      lowest: "info",
      format,
      fields: { mountpoint: "/mnt" },
      write: (line) => {
        text += line;
      },
    }),
  );
  return text;
}

test("text has a time and the level, and indents what goes on", () => {
  expect(linesOf("text", (log) => log.warn("one\ntwo"))).toMatch(/^\d{4}-[\dT:.-]+Z warn one\n {2}two\n$/);
});

test("for the journal each line begins with its priority, and has no time", () => {
  expect(linesOf("journal", (log) => log.error("one\ntwo"))).toBe("<3>one\n<3>two\n");
  expect(linesOf("journal", (log) => log.info("one"))).toBe("<6>one\n");
});

test("JSON is one object a line, with the level by name, the time, the process and the mount", () => {
  const line = linesOf("json", (log) => log.info('a "quoted"\nline'));
  expect(line.match(/\n/g)).toHaveLength(1);
  expect(JSON.parse(line)).toEqual({
    level: "info",
    time: expect.stringMatching(/^\d{4}-.*Z$/),
    pid: process.pid,
    mountpoint: "/mnt",
    msg: 'a "quoted"\nline',
  });
});

test.each(["text", "json", "journal"] as const)("what is below the level is not there: %s", (format) => {
  expect(linesOf(format, (log) => log.debug("no"))).toBe("");
});
