/* mock.c: a canned OpenAI-compatible model server that costs a few microseconds an answer, so that what is measured
 * through a proxy is the proxy.
 *
 * One thread, one epoll set, any number of ports. Answers are rendered at the start: a completion of 1.7 KiB, or for a
 * body with "stream":true an event stream of 64 events of about 200 bytes in chunked coding, every event in its own
 * write, stamped with CLOCK_MONOTONIC in its "system_fingerprint" ("fp_<index>_<ns>"). [DONE] and the end of the coding
 * share the last event's write. The first byte leaves at once, which no real model does: it makes races visible and the
 * time to first token pure proxy cost.
 *
 *   mock -p PORT[,PORT...]      (prints "ready" when all listen)
 *   GET /control?gap_us=5000&latency_us=0&silent_after=-1   sets the gap between events, the latency of a completion
 *        and the number of events after which a stream falls silent (-1 never, 0 before the first byte); answers stats
 *   GET /stats                  counters, and when a connection with an unfinished answer was last seen closed
 *   GET /health, /v1/models     for gateways that ask
 *
 * Invariants: a connection is in the timer heap exactly while its answer waits for time (state LATER or STREAM without
 * unsent bytes); active_* count connections with an unfinished answer. */
#define _GNU_SOURCE
#include "rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define MAX_CONN 65536
#define BUF 16384

enum state { LISTEN, READ, LATER, STREAM };

struct conn {
  int fd, heap; /* heap: place in the timer heap, -1 outside */
  enum state state;
  int event;        /* next event to write */
  int close_after;  /* the request said Connection: close */
  int want_out;     /* EPOLLOUT is asked for */
  int64_t due;
  size_t len, out_len, out_off; /* bytes in buf; unsent bytes of out */
  char *buf, *out;
};

static struct {
  long requests, json, streams, completed, connections, aborted_json, aborted_streams, active_json, active_streams;
  int64_t last_abort_ns;
  int last_abort_event;
} stats;

static int ep;
static int64_t gap_ns, latency_ns;
static int silent_after = -1;
static char json_answer[4096];
static size_t json_len;
static struct {
  char bytes[EVENT_MAX * 2];
  size_t len, stamp; /* stamp: offset of the digits */
} events[EVENTS];
static struct conn *heap[MAX_CONN];
static int heap_n;

/* --- timer heap, the earliest first --- */

static void heap_put(int i, struct conn *c) {
  heap[i] = c;
  c->heap = i;
}

static void heap_fix(int i, struct conn *c) {
  while (i > 0 && heap[(i - 1) / 2]->due > c->due) {
    heap_put(i, heap[(i - 1) / 2]);
    i = (i - 1) / 2;
  }
  for (;;) {
    int k = 2 * i + 1;
    if (k >= heap_n) break;
    if (k + 1 < heap_n && heap[k + 1]->due < heap[k]->due) k++;
    if (heap[k]->due >= c->due) break;
    heap_put(i, heap[k]);
    i = k;
  }
  heap_put(i, c);
}

static void timer_set(struct conn *c, int64_t due) {
  c->due = due;
  heap_fix(c->heap >= 0 ? c->heap : heap_n++, c);
}

static void timer_clear(struct conn *c) {
  if (c->heap < 0) return;
  int i = c->heap;
  struct conn *last = heap[--heap_n];
  c->heap = -1;
  if (last != c) heap_fix(i, last);
}

/* --- canned answers --- */

static size_t render_event(int i, char *out) {
  const char *delta = i == 0 ? "\"role\":\"assistant\",\"content\":\"\"" : i == EVENTS - 1 ? "" : "\"content\":\" spillway\"";
  char body[EVENT_MAX];
  int n = snprintf(body, sizeof body,
                   "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1750000000,"
                   "\"model\":\"bench\",\"system_fingerprint\":\"fp_%02d_%0*d\","
                   "\"choices\":[{\"index\":0,\"delta\":{%s},\"finish_reason\":%s}]%s}\n\n",
                   i, STAMP_DIGITS, 0, delta, i == EVENTS - 1 ? "\"stop\"" : "null",
                   i == EVENTS - 1 ? ",\"usage\":{\"prompt_tokens\":230,\"completion_tokens\":62,\"total_tokens\":292}" : "");
  return (size_t)sprintf(out, "%x\r\n%s\r\n%s", n, body, i == EVENTS - 1 ? "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" : "");
}

static void render(void) {
  char body[JSON_BODY_LEN];
  json_body(body);
  json_len = (size_t)sprintf(json_answer,
                             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: mock\r\nContent-Length: %d\r\n\r\n",
                             JSON_BODY_LEN);
  memcpy(json_answer + json_len, body, JSON_BODY_LEN);
  json_len += JSON_BODY_LEN;
  for (int i = 0; i < EVENTS; i++) {
    char *p = events[i].bytes;
    if (i == 0)
      p += sprintf(p, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                      "Server: mock\r\nTransfer-Encoding: chunked\r\n\r\n");
    p += render_event(i, p);
    events[i].len = (size_t)(p - events[i].bytes);
    events[i].stamp = (size_t)(strstr(events[i].bytes, STAMP_MARK) - events[i].bytes) + sizeof STAMP_MARK - 1 + 3;
  }
}

/* --- connections --- */

static void watch(struct conn *c, int op, uint32_t what) {
  struct epoll_event e = {.events = what, .data.ptr = c};
  if (epoll_ctl(ep, op, c->fd, &e) < 0) die("epoll_ctl");
}

static void drop(struct conn *c) {
  if (c->state == LATER || c->state == STREAM) {
    int stream = c->state == STREAM;
    stats.last_abort_ns = now_ns();
    stats.last_abort_event = stream ? c->event : 0;
    if (stream) stats.aborted_streams++, stats.active_streams--;
    else stats.aborted_json++, stats.active_json--;
  }
  timer_clear(c);
  close(c->fd);
  stats.connections--;
  free(c->buf);
  free(c->out);
  free(c);
}

/* put writes n bytes or keeps the unsent rest and asks for EPOLLOUT. 0: all sent, 1: a rest is kept, -1: c is gone. */
static int put(struct conn *c, const char *p, size_t n) {
  ssize_t k = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (k == (ssize_t)n) return 0;
  if (k < 0 && errno != EAGAIN) {
    drop(c);
    return -1;
  }
  if (k < 0) k = 0;
  free(c->out);
  c->out_len = n - (size_t)k;
  c->out_off = 0;
  c->out = malloc(c->out_len);
  memcpy(c->out, p + k, c->out_len);
  c->want_out = 1;
  watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
  return 1;
}

static int serve_buffered(struct conn *c);

static int finish(struct conn *c) {
  c->state = READ;
  if (c->close_after) {
    drop(c);
    return -1;
  }
  return c->len ? serve_buffered(c) : 0;
}

/* step writes the events that are due, one a call unless the gap is zero. -1: c is gone. */
static int step(struct conn *c) {
  for (;;) {
    if (c->event == EVENTS) {
      stats.active_streams--;
      stats.completed++;
      return finish(c);
    }
    if (silent_after >= 0 && c->event >= silent_after) return 0;
    int i = c->event++;
    int64_t t = now_ns(), v = t;
    char *digits = events[i].bytes + events[i].stamp;
    for (int k = STAMP_DIGITS - 1; k >= 0; k--, v /= 10) digits[k] = (char)('0' + v % 10);
    int rc = put(c, events[i].bytes, events[i].len);
    if (rc != 0) return rc < 0 ? -1 : 0; /* a kept rest resumes from the flush */
    /* The role comes with the first token, as vLLM sends it: a gateway may hold it back until then. */
    if (gap_ns == 0 || i == 0 || c->event == EVENTS) continue;
    /* Slightly late events keep the pace; a mock more than a gap behind slows down instead of sending bursts, which the
     * proxy could join into one read. */
    timer_set(c, c->due + gap_ns > t ? c->due + gap_ns : t + gap_ns);
    return 0;
  }
}

static int flush(struct conn *c) {
  ssize_t k = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (k < 0 && errno == EAGAIN) return 0;
  if (k < 0) {
    drop(c);
    return -1;
  }
  c->out_off += (size_t)k;
  if (c->out_off < c->out_len) return 0;
  c->want_out = 0;
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  if (c->state != STREAM) return 0;
  if (gap_ns == 0 || c->event == 1 || c->event == EVENTS) return step(c);
  timer_set(c, now_ns() + gap_ns);
  return 0;
}

static int answer_json(struct conn *c) {
  stats.active_json--;
  c->state = READ;
  if (put(c, json_answer, json_len) < 0) return -1;
  return finish(c);
}

static long query(const char *p, const char *end, const char *name, long fallback) {
  const char *q = memmem(p, (size_t)(end - p), name, strlen(name));
  return q ? atol(q + strlen(name)) : fallback;
}

static int reply(struct conn *c, const char *status, const char *body) {
  char out[2048];
  int n = snprintf(out, sizeof out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status,
                   strlen(body), body);
  if (put(c, out, (size_t)n) < 0) return -1;
  return finish(c);
}

static int answer_stats(struct conn *c) {
  char body[1024];
  snprintf(body, sizeof body,
           "{\"requests\":%ld,\"json\":%ld,\"streams\":%ld,\"completed\":%ld,\"connections\":%ld,\"active_json\":%ld,"
           "\"active_streams\":%ld,\"aborted_json\":%ld,\"aborted_streams\":%ld,\"last_abort_ns\":%lld,"
           "\"last_abort_event\":%d}\n",
           stats.requests, stats.json, stats.streams, stats.completed, stats.connections, stats.active_json,
           stats.active_streams, stats.aborted_json, stats.aborted_streams, (long long)stats.last_abort_ns,
           stats.last_abort_event);
  return reply(c, "200 OK", body);
}

static int answer_get(struct conn *c, const char *p, const char *end) {
  const char *path = p + 4;
  if (!strncmp(path, "/health ", 8)) return reply(c, "200 OK", "{\"status\":\"ok\"}");
  if (!strncmp(path, "/v1/models ", 11) || !strncmp(path, "/models ", 8))
    return reply(c, "200 OK",
                 "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1750000000,\"owned_by\":\"bench\"}]}");
  if (!strncmp(path, "/stats ", 7)) return answer_stats(c);
  if (!strncmp(path, "/control", 8)) {
    gap_ns = query(path, end, "gap_us=", (long)(gap_ns / 1000)) * 1000;
    latency_ns = query(path, end, "latency_us=", (long)(latency_ns / 1000)) * 1000;
    silent_after = (int)query(path, end, "silent_after=", silent_after);
    return answer_stats(c);
  }
  return reply(c, "404 Not Found", "{\"error\":{\"message\":\"no such path\"}}");
}

static int answer_post(struct conn *c, const char *body, size_t n) {
  stats.requests++;
  if (memmem(body, n, "\"stream\":true", 13) || memmem(body, n, "\"stream\": true", 14)) {
    stats.streams++;
    stats.active_streams++;
    c->state = STREAM;
    c->event = 0;
    c->due = now_ns();
    return step(c);
  }
  stats.json++;
  stats.active_json++;
  c->state = LATER;
  if (latency_ns == 0) return answer_json(c);
  timer_set(c, now_ns() + latency_ns);
  return 0;
}

/* body_end returns the request's end, or NULL while bytes are missing. Chunked bodies are taken to end with the buffer:
 * nothing here pipelines. */
static char *body_end(struct conn *c, char *body) {
  const char *v = HEADER(c->buf, body, "content-length");
  char *end = c->buf + c->len;
  if (v) return body + atol(v) <= end ? body + atol(v) : NULL;
  v = HEADER(c->buf, body, "transfer-encoding");
  if (!v) return body;
  return end - body >= 5 && !memcmp(end - 5, "0\r\n\r\n", 5) ? end : NULL;
}

/* serve_buffered answers the first whole request in the buffer, if there is one. -1: c is gone. */
static int serve_buffered(struct conn *c) {
  char *head_end = memmem(c->buf, c->len, "\r\n\r\n", 4);
  if (!head_end) return 0;
  char *body = head_end + 4, *end = body_end(c, body);
  if (!end) return 0;
  const char *conn = HEADER(c->buf, body, "connection");
  c->close_after = conn && !strncasecmp(conn, "close", 5);
  static char request[BUF]; /* the answer may serve the next request, which moves buf */
  size_t n = (size_t)(end - c->buf), body_at = (size_t)(body - c->buf);
  memcpy(request, c->buf, n);
  c->len -= n;
  memmove(c->buf, end, c->len);
  if (!strncmp(request, "GET ", 4)) return answer_get(c, request, request + n);
  return answer_post(c, request + body_at, n - body_at);
}

static void on_conn(struct conn *c, uint32_t what) {
  if ((what & EPOLLOUT) && c->want_out && flush(c) < 0) return;
  if (!(what & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
  ssize_t n = recv(c->fd, c->buf + c->len, BUF - c->len, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    drop(c);
    return;
  }
  c->len += (size_t)n;
  if (c->state == READ && !c->want_out) serve_buffered(c);
}

static void on_listen(struct conn *l) {
  int fd;
  while ((fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    int one = 1;
    if (stats.connections >= MAX_CONN - 16) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct conn *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->heap = -1;
    c->state = READ;
    c->buf = malloc(BUF);
    stats.connections++;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void listen_on(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 8192) < 0) die("listen");
  struct conn *c = calloc(1, sizeof *c);
  c->fd = fd;
  c->state = LISTEN;
  watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void run(void) {
  static struct epoll_event ev[256];
  for (;;) {
    int n = wait_until(ep, ev, 256, heap_n ? heap[0]->due : 0);
    for (int i = 0; i < n; i++) {
      struct conn *c = ev[i].data.ptr;
      if (c->state == LISTEN) on_listen(c);
      else on_conn(c, ev[i].events);
    }
    int64_t t = now_ns();
    while (heap_n && heap[0]->due <= t) {
      struct conn *c = heap[0];
      timer_clear(c);
      if (c->state == STREAM) step(c);
      else if (c->state == LATER) answer_json(c);
    }
  }
}

int main(int argc, char **argv) {
  struct rlimit r;
  getrlimit(RLIMIT_NOFILE, &r);
  r.rlim_cur = r.rlim_max;
  setrlimit(RLIMIT_NOFILE, &r);
  prctl(PR_SET_TIMERSLACK, 1);
  signal(SIGPIPE, SIG_IGN);
  if ((ep = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll");
  render();
  if (argc != 3 || strcmp(argv[1], "-p")) {
    fprintf(stderr, "usage: mock -p PORT[,PORT...]\n");
    return 2;
  }
  for (char *p = strtok(argv[2], ","); p; p = strtok(NULL, ",")) listen_on(atoi(p));
  printf("ready\n");
  fflush(stdout);
  run();
}
