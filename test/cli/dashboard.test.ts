/** The page of a mount: who may ask for it, and what a browser makes of it. */
import { type ChildProcess, spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import type { Page } from "playwright-core";
import { describe, expect, onTestFinished, test } from "vitest";
import { LeaseKind } from "../../src/lease/wire.ts";
import { noBrowser, withBrowser } from "../support/browser.ts";
import { hold } from "../support/grant.ts";
import { type TestMount, useMount, withMount } from "../support/mount.ts";
import { cli, noOtherUser, OTHER_UID, programPath } from "../support/run.ts";

const MIB = 1024 * 1024;
/** A browser on a machine that is busy with other tests takes its time. */
const PATIENT = { timeout: 30_000 };
const BROWSER_TEST_MS = 240_000;

/** Serve the page in a process of its own, as a user would; ends with the test. */
function serve(mount: TestMount): Promise<URL> {
  const child: ChildProcess = spawn(process.execPath, [programPath, "dashboard", mount.path], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  return new Promise((done, failed) => {
    let text = "";
    const take = (part: Buffer): void => {
      text += part.toString();
      if (text.includes("\n")) text.startsWith("http") ? done(new URL(text.trim())) : failed(new Error(text));
    };
    child.stdout?.on("data", take);
    child.stderr?.on("data", take);
  });
}

interface Asked {
  path?: string;
  host?: string;
  method?: string;
  headers?: Record<string, string>;
  body?: string;
}

function send(
  url: URL,
  asked: Asked = {},
): Promise<{ code: number; text: string; headers: Record<string, unknown> }> {
  const { path = url.pathname, host = url.host, method = "GET", headers = {}, body } = asked;
  return new Promise((done, failed) => {
    const sent = request(
      { host: url.hostname, port: url.port, path, method, headers: { host, ...headers } },
      (response) => {
        let text = "";
        response.setEncoding("utf8");
        response.on("data", (part: string) => {
          text += part;
        });
        response.on("end", () => done({ code: response.statusCode ?? 0, text, headers: response.headers }));
      },
    );
    sent.on("error", failed);
    sent.end(body);
  });
}

describe("who may ask", () => {
  const mount = useMount({ options: "break_time=1" });

  test("whoever has the token, by the printed address, on this machine alone", async () => {
    const url = await serve(mount);
    expect(url.hostname).toBe("127.0.0.1");
    const [, token = ""] = url.pathname.split("/");
    expect(Buffer.from(token, "base64url")).toHaveLength(32);
    const page = await send(url);
    expect(page.code).toBe(200);
    expect(page.headers).toMatchObject({
      "content-security-policy": expect.stringContaining("default-src 'none'"),
      "referrer-policy": "no-referrer",
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
    });
    expect(page.text).not.toMatch(/https?:\/\//);
    for (const path of [
      "/",
      `/${token.slice(0, -1)}/`,
      `/${token}x/`,
      `/${token}`,
      `//${token}/`,
      "/api/state",
      `/${token}/../page.js`,
      `/${token}/%2e%2e/package.json`,
    ])
      expect((await send(url, { path })).code, path).toBe(404);
    for (const host of ["evil.example", `evil.example:${url.port}`, "127.0.0.1"])
      expect((await send(url, { host })).code, host).toBe(403);
    expect((await send(url, { host: `localhost:${url.port}` })).code).toBe(200);
    await expect(
      new Promise((done, failed) =>
        connect(Number(url.port), "127.0.0.2").on("connect", done).on("error", failed),
      ),
    ).rejects.toMatchObject({ code: "ECONNREFUSED" });
  });

  test("a lease is broken by the page alone: not by a link, a form or another site's script", async () => {
    await writeFile(mount.at("file"), Buffer.alloc(MIB));
    const letGo = hold(mount.at("file"), LeaseKind.SEAL, MIB);
    try {
      const url = await serve(mount);
      const path = `${url.pathname}api/break`;
      const state = async (): Promise<string[]> =>
        (
          JSON.parse((await send(url, { path: `${url.pathname}api/state` })).text) as {
            leases: { state: string }[];
          }
        ).leases.map((lease) => lease.state);
      const { leases } = JSON.parse((await send(url, { path: `${url.pathname}api/state` })).text) as {
        leases: { id: number }[];
      };
      const body = JSON.stringify({ id: leases[0]?.id });
      const guard = { "x-mapdirect": "1" };
      expect((await send(url, { path })).code).toBe(403);
      expect((await send(url, { path, method: "POST", body })).code).toBe(403);
      const elsewhere = { ...guard, origin: "http://evil.example" };
      expect((await send(url, { path, method: "POST", body, headers: elsewhere })).code).toBe(403);
      for (const wrong of ["{", "{}", '{"id":0}', '{"id":"1"}', '{"id":-1}', "null", "[]"])
        expect(
          (await send(url, { path, method: "POST", body: wrong, headers: guard })).code,
          wrong,
        ).toBeGreaterThanOrEqual(400);
      expect((await send(url, { path, method: "POST", body: "x".repeat(5000), headers: guard })).code).toBe(
        503,
      );
      expect(await state()).toEqual(["held"]);
      const own = { ...guard, origin: url.origin };
      expect((await send(url, { path, method: "POST", body, headers: own })).code).toBe(200);
      expect((await state())[0]).toMatch(/breaking|revoked/);
    } finally {
      letGo();
    }
  });

  test("who is neither root nor whoever mounted gets no page", async ({ skip }) => {
    const lacking = noOtherUser();
    if (lacking !== undefined) skip(lacking);
    const { code, stderr } = await cli(["dashboard", mount.path], { user: OTHER_UID });
    expect(code).toBe(1);
    expect(stderr).toContain("root");
  });

  test("a mount that goes away is said to be gone, and the page goes on", async () => {
    await withMount({}, async (other) => {
      const url = await serve(other);
      await other.unmount();
      const { code, text } = await send(url, { path: `${url.pathname}api/state` });
      expect(code).toBe(503);
      expect(JSON.parse(text)).toMatchObject({ error: expect.stringContaining(other.path) });
      await other.mount();
      expect((await send(url, { path: `${url.pathname}api/state` })).code).toBe(200);
    });
  });
});

/** Where the middle of a cell is on the screen. */
async function middleOf(page: Page, cell: number): Promise<{ x: number; y: number }> {
  const box = await page.locator("#map").boundingBox();
  if (box === null) throw new Error("no map");
  const px = (box.width * 9) / (128 * 9 - 1);
  return { x: box.x + ((cell % 128) + 0.4) * px, y: box.y + (Math.floor(cell / 128) + 0.4) * px };
}

describe.skipIf(noBrowser !== undefined)(
  `in a browser${noBrowser === undefined ? "" : ` (${noBrowser})`}`,
  () => {
    test.each(["light", "dark"] as const)(
      "%s: the map names what is pointed at; a lease is broken after a question",
      async (colorScheme) => {
        await withMount({ options: "break_time=600" }, async (mount) => {
          const name = '<img src=x onerror="document.title=1">&amp;';
          await writeFile(mount.at(name), Buffer.alloc(16 * MIB, 1));
          const letGo = hold(mount.at(name), LeaseKind.SEAL, 8 * MIB);
          const url = await serve(mount);
          await withBrowser({ colorScheme }, async (browser) => {
            const page = await browser.newPage();
            const complaints: string[] = [];
            const foreign: string[] = [];
            page.on("pageerror", (error) => complaints.push(String(error)));
            page.on("console", (message) => {
              if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
            });
            page.on("request", (asked) => {
              if (!asked.url().startsWith(url.href) && !asked.url().startsWith("data:"))
                foreign.push(asked.url());
            });
            await page.goto(url.href);
            await page.waitForSelector("body[data-ready=yes]");
            const background = await page.evaluate("getComputedStyle(document.body).backgroundColor");
            expect(background).toBe(colorScheme === "dark" ? "rgb(15, 18, 22)" : "rgb(244, 246, 249)");
            await expect.poll(() => page.locator("#map-cells path.sealed").count(), PATIENT).toBe(1);
            // A cell of the sealed half: the first one that the map has in that state.
            const [, x, y] =
              /M([\d.]+) ([\d.]+)/.exec(
                (await page.locator("#map-cells path.sealed").getAttribute("d")) ?? "",
              ) ?? [];
            const cell = Math.floor(Number(y) / 9) * 128 + Math.floor(Number(x) / 9) + 5;
            const at = await middleOf(page, cell);
            await page.mouse.move(at.x, at.y);
            await expect.poll(() => page.locator("#tip").innerText(), PATIENT).toContain(mount.at(name));
            const tip = await page.locator("#tip").innerText();
            expect(tip).toMatch(/lease \d+ \(seal, held\) of \S+, process \d+, user 0/);
            expect(tip).toContain("16 MiB written at 0 B of the file");
            await page.mouse.click(at.x, at.y);
            await page.mouse.move(0, 0);
            expect(await page.locator("#tip").isVisible()).toBe(false);
            await expect.poll(() => page.locator("#where").innerText(), PATIENT).toContain(mount.at(name));
            // By the keyboard as well: to the next line and back, then ask.
            await page.locator("#map").focus();
            await page.keyboard.press("ArrowDown");
            await page.keyboard.press("ArrowUp");
            await page.keyboard.press("Enter");
            await expect.poll(() => page.locator("#where").innerText(), PATIENT).toContain(mount.at(name));
            await expect.poll(() => page.locator(".chart canvas").count(), PATIENT).toBe(2);
            await page.getByRole("button", { name: "Break…" }).click();
            expect(await page.locator("#confirm").innerText()).toContain(
              `maps ${mount.at(name)}. It is told, and has 600 seconds`,
            );
            await page.getByRole("button", { name: "Keep it" }).click();
            expect(await page.locator("#leases").innerText()).toContain("held");
            await page.getByRole("button", { name: "Break…" }).click();
            await page.getByRole("button", { name: "Break it" }).click();
            await expect.poll(() => page.locator("#leases .state-breaking").count(), PATIENT).toBe(1);
            await expect.poll(() => page.locator("#map-cells path.breaking").count(), PATIENT).toBe(1);
            letGo();
            await expect.poll(() => page.locator("#leases-count").innerText(), PATIENT).toBe("none");
            expect(await page.title()).toBe("mapdirect");
            // Nothing is cut off sideways on a laptop.
            expect(await page.evaluate("document.documentElement.scrollWidth <= innerWidth")).toBe(true);
            expect(complaints).toEqual([]);
            expect(foreign).toEqual([]);
          });
        });
      },
      BROWSER_TEST_MS,
    );

    test(
      "on a telephone nothing is wider than the screen, and numbers of a daemon that died are not shown",
      async () => {
        await withMount({}, async (mount) => {
          await writeFile(mount.at("a name that is much longer than a telephone is wide, without end"), "x");
          hold(
            mount.at("a name that is much longer than a telephone is wide, without end"),
            LeaseKind.SEAL,
            1,
          );
          const url = await serve(mount);
          await withBrowser({ width: 360, height: 640 }, async (browser) => {
            const page = await browser.newPage();
            await page.goto(url.href);
            await page.waitForSelector("body[data-ready=yes]");
            for (const width of [420, 360, 280]) {
              await page.setViewportSize({ width, height: 640 });
              await expect
                .poll(() => page.evaluate("document.documentElement.scrollWidth - innerWidth"), PATIENT)
                .toBeLessThanOrEqual(0);
            }
            await expect.poll(() => page.locator("#tile-free").innerText(), PATIENT).toMatch(/MiB/);
            await mount.kill9();
            await expect.poll(() => page.locator("#tile-free").innerText(), PATIENT).toBe("–");
            expect(await page.locator("#trouble").innerText()).toContain(mount.path);
            await mount.mount();
            await expect.poll(() => page.locator("#tile-free").innerText(), PATIENT).toMatch(/MiB/);
            expect(await page.locator("body.stale").count()).toBe(0);
          });
        });
      },
      BROWSER_TEST_MS,
    );
  },
);
