import { test } from "vitest";
test("smoke", async () => { await import("/tmp/mdns/smoke.ts"); });
