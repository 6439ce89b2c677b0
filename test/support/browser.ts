/** Debian's Chromium without a screen, driven by playwright-core. */
import { existsSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { type BrowserContext, chromium } from "playwright-core";
import { folderPrefix } from "./leftovers.ts";

const EXECUTABLE = "/usr/bin/chromium";

/** Undefined if there is a browser, else the reason to skip. */
export const noBrowser = existsSync(EXECUTABLE) ? undefined : "chromium is not installed";

export interface BrowserOptions {
  readonly colorScheme?: "dark" | "light";
  readonly width?: number;
  readonly height?: number;
}

/** A browser of its own, gone afterwards with all that it wrote. */
export async function withBrowser<T>(
  options: BrowserOptions,
  action: (browser: BrowserContext) => Promise<T>,
): Promise<T> {
  const { colorScheme = "light", width = 1366, height = 768 } = options;
  const profile = mkdtempSync(folderPrefix(tmpdir()));
  try {
    const browser = await chromium.launchPersistentContext(profile, {
      executablePath: EXECUTABLE,
      headless: true,
      // On a machine that is busy with other tests.
      timeout: 120_000,
      colorScheme,
      viewport: { width, height },
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    });
    browser.setDefaultTimeout(60_000);
    try {
      return await action(browser);
    } finally {
      await browser.close();
    }
  } finally {
    await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}
