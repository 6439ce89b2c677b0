#!/usr/bin/env node
import { mountHelper } from "../cli/mount-helper.ts";

await mountHelper(process.argv.slice(2));
