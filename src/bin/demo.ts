#!/usr/bin/env node
import { demo } from "../cli/demo.ts";

await demo();
