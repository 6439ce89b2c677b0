import { kindsOn } from "./kinds.ts";

kindsOn("newest", { clientPrograms: true });
