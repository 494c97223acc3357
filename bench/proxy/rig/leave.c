/* leave.c: how soon does the upstream learn that a client has left? One client at a time sends a request through the
 * proxy, waits for the phase, closes its connection, and asks the mock when it saw its own connection closed.
 *
 * Phases: mid (events 20 ms apart), silent (nothing after two events), first (nothing at all, not even a head), json (a
 * completion that is not due for 10 s).
 *
 *   leave -a PORT -M MOCKPORT [-n TRIALS] [-k KEY]      one JSON object on standard output
 *
 * The mock's clock and ours are the same CLOCK_MONOTONIC. A trial whose upstream is still open after 4 s is not seen. */
#define _GNU_SOURCE
#include "request.h"

#define WAIT_NS 4000000000LL
#define MAX_TRIALS 1000

struct phase {
  const char *name, *control;
  int stream, events;
};

static const struct phase phases[] = {
    {"mid", "gap_us=20000&latency_us=0&silent_after=-1", 1, 2},
    {"silent", "gap_us=1000&latency_us=0&silent_after=2", 1, 2},
    {"first", "gap_us=1000&latency_us=0&silent_after=0", 1, 0},
    {"json", "gap_us=1000&latency_us=10000000&silent_after=-1", 0, 0},
};

struct seen {
  long active, aborted;
  long long last_abort_ns;
};

static int control_fd = -1, port, mock_port, trials = 15;
static const char *key = "none";

static long long field(const char *text, const char *name) {
  const char *p = strstr(text, name);
  return p ? atoll(p + strlen(name)) : -1;
}

/* ask makes one request to the mock and reads its counters. */
static struct seen ask(const char *path) {
  char text[4096];
  size_t len = 0;
  int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: mock\r\n\r\n", path);
  if (control_fd < 0) control_fd = dial(mock_port);
  if (control_fd < 0 || send(control_fd, text, (size_t)n, MSG_NOSIGNAL) != n) die("ask the mock");
  do {
    ssize_t k = recv(control_fd, text + len, sizeof text - 1 - len, 0);
    if (k <= 0) die("mock's answer");
    len += (size_t)k;
    text[len] = 0;
  } while (!strstr(text, "last_abort_event") || text[len - 1] != '\n');
  return (struct seen){field(text, "active_json\":") + field(text, "active_streams\":"),
                       field(text, "aborted_json\":") + field(text, "aborted_streams\":"), field(text, "last_abort_ns\":")};
}

static void pause_us(long us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, NULL);
}

/* reach waits until the request is in its phase: events read by the client, or the request seen by the mock. */
static int reach(int fd, const struct phase *p, long active_before) {
  struct timeval wait = {3, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  char text[8192];
  size_t len = 0;
  for (int events = 0; events < p->events;) {
    ssize_t k = recv(fd, text + len, sizeof text - 1 - len, 0);
    if (k <= 0) return -1;
    len += (size_t)k;
    text[len] = 0;
    events = 0;
    for (char *s = text; (s = strstr(s, STAMP_MARK)); s++) events++;
  }
  for (int64_t until = now_ns() + 3000000000LL; ask("/stats").active <= active_before;) {
    if (now_ns() > until) return -1;
    pause_us(1000);
  }
  return 0;
}

/* trial returns the ns from close to the upstream's end, -1 when it was not seen, -2 when the phase was not reached. */
static int64_t trial(const struct phase *p, struct request *r, int number) {
  struct seen before = ask("/stats");
  int fd = dial(port);
  if (fd < 0) return -2;
  request_number(r, (uint64_t)now_ns());
  if (send(fd, r->bytes, r->len, MSG_NOSIGNAL) != (ssize_t)r->len || reach(fd, p, before.active) < 0) {
    close(fd);
    return -2;
  }
  pause_us(30000 + number % 7 * 5000);
  int64_t left = now_ns();
  close(fd);
  while (now_ns() < left + WAIT_NS) {
    pause_us(2000);
    struct seen s = ask("/stats");
    if (s.aborted > before.aborted) return s.last_abort_ns - left;
  }
  return -1;
}

static int ascending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static void run(const struct phase *p) {
  static int64_t took[MAX_TRIALS];
  struct request r;
  char path[256];
  int n = 0, reached = 0, misses = 0;
  snprintf(path, sizeof path, "/control?%s", p->control);
  ask(path);
  request_build(&r, key, p->stream);
  /* Five misses in a row decide it: every one costs 4 s. */
  for (int i = 0; i < trials && misses < 5; i++) {
    int64_t t = trial(p, &r, i);
    reached += t != -2;
    misses = t < 0 ? misses + 1 : 0;
    if (t >= 0) took[n++] = t;
  }
  qsort(took, (size_t)n, sizeof *took, ascending);
  int p99 = n * 99 / 100;
  printf("\"%s\":{\"trials\":%d,\"seen\":%d,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}", p->name, reached, n,
         n ? (double)took[n / 2] / 1e6 : 0, n ? (double)took[p99 < n ? p99 : n - 1] / 1e6 : 0, n ? (double)took[n - 1] / 1e6 : 0);
}

int main(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "a:M:n:k:")) != -1;) switch (o) {
      case 'a': port = atoi(optarg); break;
      case 'M': mock_port = atoi(optarg); break;
      case 'n': trials = atoi(optarg); break;
      case 'k': key = optarg; break;
      default: return 2;
    }
  if (!port || !mock_port || trials < 1 || trials > MAX_TRIALS) {
    fprintf(stderr, "usage: leave -a PORT -M MOCKPORT [-n TRIALS] [-k KEY]\n");
    return 2;
  }
  printf("{");
  for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
    if (i) printf(",");
    run(&phases[i]);
  }
  printf("}\n");
  ask("/control?gap_us=0&latency_us=0&silent_after=-1");
  return 0;
}
