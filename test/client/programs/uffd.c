/* Without userfaultfd (test/client/substitutes/userfaultfd.c makes it so). */
#include "tap.h"

int main(int argc, char **argv) {
  begin(argc, argv);
  int fd = make_file("uffd", "WWHW");
  refuses("a range with a hole: EOPNOTSUPP rather than a page that loses stores", EOPNOTSUPP, NULL, 4 * PAGE,
          READ_WRITE, DIRECT, fd, 0);
  report(punch("uffd", 2 * PAGE) == 0, "and no lease is left", "ETXTBSY");
  char *map = map_any(NULL, 2 * PAGE, READ_WRITE, DIRECT, fd, 0);
  check(map != MAP_FAILED && map[PAGE] == 'B', "a range without one is mapped");
  if (map != MAP_FAILED) unmap(map, 2 * PAGE);
  return end();
}
