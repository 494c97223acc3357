/* client.c: a load client that costs a few microseconds a request, checks every answer, and reads the CPU and the memory
 * of the system under test at the edges of its window.
 *
 * One thread, one epoll set. Modes (-m):
 *   json    closed loop: -c connections, each sends when its answer is whole
 *   open    open loop: -r requests a second at instants fixed in advance, over -c connections (more when none is free);
 *           latency counts from the scheduled instant, so a stall is not hidden
 *   stream  -c concurrent event streams, each restarted when it ends
 *   idle    -c keep-alive connections, one completion on each, then silence for -d seconds
 * Others: -a PORT, -d seconds (window), -w seconds (warm-up, in which connections start staggered), -k API key,
 * -P pids under test, -Q pids of the mock, -n stop after so many answers. One JSON object on standard output.
 *
 * A whole answer that arrives in the window is counted in it; a failed one is counted always. */
#define _GNU_SOURCE
#include <stddef.h>

#include "answer.h"
#include "process.h"
#include "request.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define MAX_CONN 20000
#define BUF 16384
#define RETRY_NS 10000000     /* a failed connection is tried again after 10 ms */
#define STALLED_NS 2000000000 /* an answer without a byte for 2 s counts as stalled at the end */

enum mode { JSON, OPEN, STREAMS, IDLE };
enum state { DOWN, FREE, BUSY };

struct conn {
  int fd;
  enum state state;
  int fresh;          /* nothing was answered on it yet: an early close is a failure, not a keep-alive end */
  int64_t began, due; /* instant latency counts from; DOWN: when to dial again */
  int64_t moved;      /* last byte */
  size_t len;
  char *buf;
  struct answer answer;
};

static struct {
  enum mode mode;
  int port, conns;
  double rate, seconds, warm;
  long stop_after;
  const char *key;
} opt = {.mode = JSON, .conns = 64, .seconds = 4, .warm = 1, .key = "none"};

static struct {
  uint64_t answers, events, broken, refused, failed, dropped, stalled, total, late_sends;
  int last_status;
} count;

static hist latency, delay, first_event;
static struct conn *conns;
static int n_conns, ep, down;
static int *ring, ring_head, ring_n; /* FREE connections, first in first out (open loop) */
static int64_t t_read, t_start, t_end;
static int in_window;
static uint64_t serial;
static struct request request;
static struct processes sut, mock;

static void on_stamp(void *who, int index, int64_t stamp) {
  struct conn *c = who;
  if (!in_window) return;
  count.events++;
  hist_add(&delay, t_read - stamp);
  if (index == 0) hist_add(&first_event, t_read - c->began);
}

static void ring_put(struct conn *c) { ring[(ring_head + ring_n++) % MAX_CONN] = (int)(c - conns); }

static void conn_down(struct conn *c, int64_t now) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  c->state = DOWN;
  c->due = now + RETRY_NS;
  down++;
}

/* begin sends a request; its latency counts from the instant at. */
static void begin(struct conn *c, int64_t at) {
  request_number(&request, ++serial);
  answer_reset(&c->answer, opt.mode == STREAMS);
  c->began = at;
  c->moved = now_ns();
  c->state = BUSY;
  c->len = 0;
  if (send(c->fd, request.bytes, request.len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)request.len) return;
  if (c->fresh) count.failed++;
  conn_down(c, c->moved);
}

static int conn_up(struct conn *c) {
  int64_t now = now_ns();
  if (c->state == DOWN && c->due) down--;
  c->fd = dial(opt.port);
  if (c->fd < 0) {
    count.failed++;
    conn_down(c, now);
    return -1;
  }
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  if (!c->buf) c->buf = malloc(BUF);
  c->fresh = 1;
  c->state = FREE;
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl");
  return 0;
}

static void next_turn(struct conn *c) {
  if (c->state == DOWN) return;
  c->state = FREE;
  if (opt.mode == OPEN) ring_put(c);
  else if (opt.mode != IDLE) begin(c, now_ns());
}

static void finished(struct conn *c, enum verdict v) {
  count.total++;
  c->fresh = 0;
  if (v == REFUSED) count.refused++, count.last_status = c->answer.status;
  if (v == BROKEN) count.broken++;
  if (v != DONE) {
    conn_down(c, t_read);
    return;
  }
  if (in_window) {
    count.answers++;
    hist_add(&latency, t_read - c->began);
  }
  if (c->answer.close_after || c->answer.coding == UNTIL_CLOSE) {
    close(c->fd);
    c->fd = -1;
    c->state = DOWN;
    c->due = 0;
    if (conn_up(c) < 0) return;
  }
  next_turn(c);
}

static void closed(struct conn *c) {
  if (c->state == BUSY && c->answer.in_body && c->answer.coding == UNTIL_CLOSE && whole(&c->answer)) {
    finished(c, DONE);
    return;
  }
  if (c->state == BUSY && (c->fresh || c->answer.in_body || c->len)) count.broken++, count.total++;
  if (c->state == FREE && opt.mode == IDLE) count.dropped++;
  if (opt.mode == OPEN && c->state == FREE) { /* leaves the ring; order is kept */
    int kept = 0, me = (int)(c - conns);
    for (int i = 0; i < ring_n; i++)
      if (ring[(ring_head + i) % MAX_CONN] != me) ring[(ring_head + kept++) % MAX_CONN] = ring[(ring_head + i) % MAX_CONN];
    ring_n = kept;
  }
  conn_down(c, now_ns());
}

static void on_conn(struct conn *c) {
  if (c->fd < 0) return;
  ssize_t n = recv(c->fd, c->buf + c->len, BUF - c->len, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    closed(c);
    return;
  }
  t_read = now_ns();
  c->moved = t_read;
  if (c->state != BUSY) { /* bytes nobody asked for */
    count.broken++;
    conn_down(c, t_read);
    return;
  }
  c->len += (size_t)n;
  size_t used;
  enum verdict v = answer_feed(&c->answer, c->buf, c->len, &used, on_stamp, c);
  c->len -= used;
  if (c->len) memmove(c->buf, c->buf + used, c->len);
  if (v == MORE && c->len == BUF) v = BROKEN;
  if (v != MORE) finished(c, v);
}

/* --- the schedule --- */

static int started;           /* connections opened so far */
static int64_t ramp_from, ramp_step, open_from;
static uint64_t open_sent;

static struct conn *add_conn(void) {
  if (n_conns == MAX_CONN) return NULL;
  struct conn *c = &conns[n_conns++];
  c->fd = -1;
  return conn_up(c) < 0 ? NULL : c;
}

static void ramp(int64_t now) {
  while (started < opt.conns && ramp_from + started * ramp_step <= now) {
    started++;
    struct conn *c = add_conn();
    if (!c) continue;
    if (opt.mode == OPEN) ring_put(c);
    else begin(c, now_ns());
  }
}

static int64_t open_due(void) { return open_from + (int64_t)((double)open_sent * 1e9 / opt.rate); }

static void open_loop(int64_t now) {
  for (int64_t at; (at = open_due()) <= now; open_sent++) {
    struct conn *c = NULL;
    if (ring_n) {
      c = &conns[ring[ring_head]];
      ring_head = (ring_head + 1) % MAX_CONN;
      ring_n--;
    } else if (n_conns < 4096) {
      c = add_conn();
    }
    if (now - at > 5000000) count.late_sends++;
    if (c) begin(c, at);
    else count.failed++;
  }
}

static void revive(int64_t now) {
  for (int i = 0; i < n_conns && down; i++) {
    struct conn *c = &conns[i];
    if (c->state != DOWN || c->due > now || conn_up(c) < 0) continue;
    if (opt.mode == IDLE) continue;
    next_turn(c);
  }
}

static int64_t next_due(int64_t edge, int64_t sample, int64_t now) {
  int64_t due = edge < sample ? edge : sample;
  if (started < opt.conns && ramp_from + started * ramp_step < due) due = ramp_from + started * ramp_step;
  if (opt.mode == OPEN && open_due() < due) due = open_due();
  if (down && now + RETRY_NS < due) due = now + RETRY_NS;
  return due;
}

/* turn runs the loop until the instant edge, sampling memory twice a second into *rss. */
static void turn(int64_t edge, int64_t *rss) {
  static struct epoll_event ev[256];
  int64_t now = now_ns(), sample = now + 500000000;
  while (now < edge && (!opt.stop_after || count.total < (uint64_t)opt.stop_after)) {
    int n = wait_until(ep, ev, 256, next_due(edge, sample, now));
    for (int i = 0; i < n; i++) on_conn(ev[i].data.ptr);
    now = now_ns();
    ramp(now);
    if (opt.mode == OPEN) open_loop(now);
    if (down) revive(now);
    if (now < sample) continue;
    int64_t r = processes_rss_fast(&sut);
    if (rss && r > *rss) *rss = r;
    sample = now + 500000000;
  }
}

static void print_hist(const char *name, const hist *h) {
  printf("\"%s\":{\"count\":%llu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f},", name,
         (unsigned long long)h->n, h->n ? h->sum / (double)h->n / 1e3 : 0, hist_at(h, .5) / 1e3, hist_at(h, .9) / 1e3,
         hist_at(h, .99) / 1e3, hist_at(h, .999) / 1e3, (double)h->max / 1e3);
}

static int64_t self_cpu(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void usage(void) {
  fprintf(stderr, "usage: client -a PORT -m json|open|stream|idle [-c N] [-r RATE] [-d S] [-w S] [-k KEY] [-P PIDS] [-Q PIDS] [-n N]\n");
  exit(2);
}

static void options(int argc, char **argv) {
  static const char *modes[] = {"json", "open", "stream", "idle"};
  for (int o; (o = getopt(argc, argv, "a:m:c:r:d:w:k:P:Q:n:")) != -1;) switch (o) {
      case 'a': opt.port = atoi(optarg); break;
      case 'm':
        for (int i = 0; i < 4; i++)
          if (!strcmp(optarg, modes[i])) opt.mode = (enum mode)i;
        break;
      case 'c': opt.conns = atoi(optarg); break;
      case 'r': opt.rate = atof(optarg); break;
      case 'd': opt.seconds = atof(optarg); break;
      case 'w': opt.warm = atof(optarg); break;
      case 'k': opt.key = optarg; break;
      case 'P': processes_parse(&sut, optarg); break;
      case 'Q': processes_parse(&mock, optarg); break;
      case 'n': opt.stop_after = atol(optarg); break;
      default: usage();
    }
  if (!opt.port || opt.conns < 1 || opt.conns > MAX_CONN || (opt.mode == OPEN && opt.rate <= 0)) usage();
}

static void setup(void) {
  struct rlimit r;
  getrlimit(RLIMIT_NOFILE, &r);
  r.rlim_cur = r.rlim_max;
  setrlimit(RLIMIT_NOFILE, &r);
  prctl(PR_SET_TIMERSLACK, 1);
  signal(SIGPIPE, SIG_IGN);
  if ((ep = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll");
  conns = calloc(MAX_CONN, sizeof *conns);
  ring = calloc(MAX_CONN, sizeof *ring);
  request_build(&request, opt.key, opt.mode == STREAMS);
}

int main(int argc, char **argv) {
  options(argc, argv);
  setup();
  int64_t rss0 = processes_rss(&sut), rss_max = 0;
  long files0 = processes_files(&sut);
  int64_t now = now_ns();
  ramp_from = now;
  ramp_step = (int64_t)(opt.warm * 0.8e9 / opt.conns);
  open_from = now + (int64_t)(opt.warm * 0.8e9);
  t_start = now + (int64_t)(opt.warm * 1e9);
  turn(t_start, NULL);

  int64_t cpu0 = processes_cpu(&sut), mock0 = processes_cpu(&mock), self0 = self_cpu(), from = now_ns();
  in_window = 1;
  t_end = from + (int64_t)(opt.seconds * 1e9);
  turn(t_end, &rss_max);
  in_window = 0;
  int64_t cpu1 = processes_cpu(&sut), mock1 = processes_cpu(&mock), self1 = self_cpu(), to = now_ns();
  if (cpu0 < 0 || cpu1 < 0) {
    fprintf(stderr, "client: a process under test is gone\n");
    return 1;
  }
  int64_t rss1 = processes_rss(&sut);
  long files1 = processes_files(&sut);
  int open = 0;
  for (int i = 0; i < n_conns; i++) {
    struct conn *c = &conns[i];
    open += c->state != DOWN;
    if (c->state == BUSY && to - c->moved > STALLED_NS) count.stalled++;
    struct linger l = {1, 0}; /* no TIME_WAIT: ten thousand of them would be left to the next run */
    if (opt.mode == IDLE && c->fd >= 0) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    if (c->fd >= 0) close(c->fd);
  }
  printf("{\"seconds\":%.6f,\"answers\":%llu,\"events\":%llu,\"total\":%llu,\"open\":%d,", (double)(to - from) / 1e9,
         (unsigned long long)count.answers, (unsigned long long)count.events, (unsigned long long)count.total, open);
  printf("\"broken\":%llu,\"refused\":%llu,\"last_status\":%d,\"failed\":%llu,\"dropped\":%llu,\"stalled\":%llu,\"late_sends\":%llu,",
         (unsigned long long)count.broken, (unsigned long long)count.refused, count.last_status,
         (unsigned long long)count.failed, (unsigned long long)count.dropped, (unsigned long long)count.stalled,
         (unsigned long long)count.late_sends);
  print_hist("latency_us", &latency);
  print_hist("delay_us", &delay);
  print_hist("first_event_us", &first_event);
  printf("\"sut_cpu_ns\":%lld,\"mock_cpu_ns\":%lld,\"client_cpu_ns\":%lld,", (long long)(cpu1 - cpu0), (long long)(mock1 - mock0),
         (long long)(self1 - self0));
  printf("\"rss_before\":%lld,\"rss_end\":%lld,\"rss_max\":%lld,\"files_before\":%ld,\"files_end\":%ld}\n", (long long)rss0,
         (long long)rss1, (long long)rss_max, files0, files1);
  return 0;
}
