/**
 * Lines for the system's log: datagrams to /dev/log in the form of syslog(3) (RFC 3164), which journald and every syslogd
 * read.
 *
 * Invariants:
 * - nobody is waited for: a log that takes no more, and may lie on a mount that waits for us, costs lines and nothing else;
 * - lines that were lost are counted, and said as soon as one gets through.
 */
import { addon } from "../region/addon.ts";

export type LogSink = (priority: number, text: string) => void;

export const SYSLOG_SOCKET = "/dev/log";
/** LOG_DAEMON of syslog(3). */
const FACILITY = 3;
const WARNING = 4;
/** What rsyslog takes without being asked for more. */
const LINE_BYTES_MAX = 8192;

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** One datagram. Local time, as the form has it. */
export function syslogLine(priority: number, text: string, now: Date, pid: number): string {
  const two = (value: number): string => `${value}`.padStart(2, "0");
  const day = `${now.getDate()}`.padStart(2, " ");
  const time = [now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join(":");
  return `<${FACILITY * 8 + priority}>${MONTHS[now.getMonth()]} ${day} ${time} mapdirect[${pid}]: ${text}`;
}

/** @param about what each line begins with: which mount it is of. */
export function openSyslog(about: string, path = SYSLOG_SOCKET): LogSink {
  let lost = 0;
  const send = (priority: number, text: string): boolean => {
    const line = Buffer.from(syslogLine(priority, `${about}: ${text}`, new Date(), process.pid));
    return addon().sendDatagram(path, line.subarray(0, LINE_BYTES_MAX)) === 0;
  };
  return (priority, text) => {
    if (lost > 0 && send(WARNING, `${lost} lines of this log were lost`)) lost = 0;
    if (!send(priority, text)) lost += 1;
  };
}
