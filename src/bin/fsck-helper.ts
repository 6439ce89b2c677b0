#!/usr/bin/env node
import { fsckHelper } from "../cli/fsck-helper.ts";

await fsckHelper(process.argv.slice(2));
