/*
 * proof: what a guest can say about having been paused, moved or restarted.
 *
 * `proof run` is the daemon that the guest's init starts. It ticks, keeps RAM whose every page names itself,
 * writes a numbered log to the disk, holds one TCP connection and counts on the serial console. Any other
 * command is handed to the daemon over a socket and answered with one line of JSON:
 *
 *     proof report             everything counted so far; cheap
 *     proof check              the same, after reading back every page of RAM and every record on the disk
 *     proof fill MIB SEED      take that much RAM and fill it
 *     proof rewrite MIB        from now on write to so many MiB of its pages a second; 0 stops that
 *     proof reset-ticks        forget the gaps measured so far
 *
 * Times are nanoseconds. The guest's own clocks stand still while QEMU is paused, so a pause cannot be seen from
 * in here: every tick is also sent as a datagram, and the peer on the host measures the gaps between them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtc.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>
#include <linux/fs.h>

enum {
	ECHO_PORT = 7001,
	TICK_PORT = 7002,
	PAGE = 4096,
	WORDS = PAGE / 8,
	RECORD = 512,
	CHUNK = 1 << 20,
	BUCKETS = 4096,
};

#define MS INT64_C(1000000)
#define BUCKET_NS (MS / 10)
#define TICK_EVERY (10 * MS * pace)
#define RECORD_EVERY (20 * MS * pace)
#define LINE_EVERY (50 * MS * pace)
#define CONSOLE_EVERY (100 * MS * pace)
#define SOCKET_PATH "/run/proof.sock"
#define DISK_PATH "/dev/vda"
#define RECORD_MAGIC UINT64_C(0x70726f6f666c6f67) /* "prooflog" */

static int64_t pace = 1; /* everything takes so many times as long: for a guest that is emulated in an emulated host */

static char boot_id[40];
static struct in_addr peer; /* zero: this guest has no network card */

static int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void sleep_until(int64_t when)
{
	struct timespec t = {.tv_sec = when / 1000000000, .tv_nsec = when % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* Waits for the next beat of a loop; beats that were missed are left out, not made up for. */
static int64_t beat(int64_t last, int64_t every)
{
	int64_t next = last + every, current = now(CLOCK_MONOTONIC);

	if (next < current)
		return current;
	sleep_until(next);
	return next;
}

static uint64_t mix(uint64_t x) /* splitmix64 */
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/* ---- ticks ---------------------------------------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	int64_t count, longest, longest_at, wall_step, buckets[BUCKETS];
	uint64_t sent;
} ticks = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void count_gap(int64_t gap, int64_t wall_gap, int64_t at)
{
	int64_t bucket = gap / BUCKET_NS, step = wall_gap - gap;

	pthread_mutex_lock(&ticks.lock);
	ticks.count++;
	ticks.buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	if (gap > ticks.longest) {
		ticks.longest = gap;
		ticks.longest_at = at;
	}
	if (llabs(step) > llabs(ticks.wall_step))
		ticks.wall_step = step;
	pthread_mutex_unlock(&ticks.lock);
}

static void *tick(void *unused)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(TICK_PORT), .sin_addr = peer};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	int64_t when = now(CLOCK_MONOTONIC), last = when, last_wall = now(CLOCK_REALTIME);

	(void)unused;
	for (;;) {
		int64_t at, wall;

		when = beat(when, TICK_EVERY);
		at = now(CLOCK_MONOTONIC);
		wall = now(CLOCK_REALTIME);
		count_gap(at - last, wall - last_wall, at);
		last = at;
		last_wall = wall;
		if (peer.s_addr) {
			char line[96];
			int n = snprintf(line, sizeof(line), "%llu %lld %lld\n", (unsigned long long)++ticks.sent,
					 (long long)at, (long long)wall);

			sendto(fd, line, n, 0, (struct sockaddr *)&to, sizeof(to));
		}
	}
	return NULL;
}

static int64_t percentile(int percent)
{
	int64_t seen = 0;

	for (int i = 0; i < BUCKETS; i++) {
		seen += ticks.buckets[i];
		if (seen * 100 >= ticks.count * percent)
			return (i + 1) * BUCKET_NS;
	}
	return 0;
}

static void reset_ticks(void)
{
	pthread_mutex_lock(&ticks.lock);
	ticks.count = ticks.longest = ticks.longest_at = ticks.wall_step = 0;
	memset(ticks.buckets, 0, sizeof(ticks.buckets));
	pthread_mutex_unlock(&ticks.lock);
}

/* ---- RAM ------------------------------------------------------------------------------------------------ */

static struct {
	uint64_t *words;
	uint32_t *times; /* that each page was written to since it was filled */
	uint64_t pages, seed, bad, rewritten;
	_Atomic uint64_t per_beat;
	int64_t first_bad, checked;
	pthread_mutex_t lock;
} ram = {.first_bad = -1, .checked = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

/* Word 0 is the page's number, word 1 the seed, the last how often it was written to, the rest a progression only
 * this page has. */
static inline uint64_t page_start(uint64_t page)
{
	return mix(ram.seed ^ mix(page));
}

#define PAGE_STEP UINT64_C(0xd1342543de82ef95)

static bool fill(uint64_t mib, uint64_t seed)
{
	size_t size = mib << 20;

	if (ram.words)
		munmap(ram.words, ram.pages * PAGE);
	free(ram.times);
	ram.words = NULL;
	ram.times = NULL;
	ram.pages = ram.rewritten = 0;
	ram.seed = seed;
	ram.checked = -1;
	if (!mib)
		return true;
	uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED)
		return false;
	ram.times = calloc(size / PAGE, sizeof(*ram.times));
	if (!ram.times) {
		munmap(words, size);
		return false;
	}
	madvise(words, size, MADV_HUGEPAGE); /* page faults are what makes this slow under emulation */
	for (uint64_t page = 0; page < size / PAGE; page++) {
		uint64_t *word = words + page * WORDS, value = page_start(page);

		for (int i = 0; i < WORDS; i++, value += PAGE_STEP)
			word[i] = value;
		word[0] = page;
		word[1] = seed;
		word[WORDS - 1] = 0;
	}
	ram.words = words;
	ram.pages = size / PAGE;
	return true;
}

static bool page_is_good(uint64_t page)
{
	const uint64_t *word = ram.words + page * WORDS;
	uint64_t value = page_start(page) + 2 * PAGE_STEP, wrong = (word[0] ^ page) | (word[1] ^ ram.seed);

	for (int i = 2; i < WORDS - 1; i++, value += PAGE_STEP)
		wrong |= word[i] ^ value;
	return !(wrong | (word[WORDS - 1] ^ ram.times[page]));
}

/* Any pages in turn: a page that misses its last write, or a count that does, will be found by the check. */
static void *rewrite(void *unused)
{
	int64_t last = now(CLOCK_MONOTONIC);

	for (uint64_t place = 0;;) {
		last = beat(last, TICK_EVERY);
		pthread_mutex_lock(&ram.lock);
		for (uint64_t n = ram.pages ? ram.per_beat : 0; n; n--) {
			uint64_t page = (place += 7919) % ram.pages; /* a prime: neighbours are not written together */

			ram.words[page * WORDS + WORDS - 1] = ++ram.times[page];
			ram.rewritten++;
		}
		pthread_mutex_unlock(&ram.lock);
	}
	return unused;
}

static void check_ram(void)
{
	uint64_t counted = 0;

	ram.bad = 0;
	ram.first_bad = -1;
	for (uint64_t page = 0; page < ram.pages; page++) {
		counted += ram.times[page];
		if (page_is_good(page))
			continue;
		if (!ram.bad++)
			ram.first_bad = page;
	}
	ram.bad += counted != ram.rewritten;
	ram.checked = ram.pages;
}

/* ---- disk: a ring of numbered records, written through to the host ---------------------------------------- */

struct record {
	uint64_t magic, number;
	int64_t wall;
	char boot_id[40];
	uint64_t rest[(RECORD - 72) / 8];
	uint64_t sum;
};
_Static_assert(sizeof(struct record) == RECORD, "a record is one sector");

static struct {
	pthread_mutex_t lock;
	int fd;
	uint64_t slots, last, io_errors, damaged, out_of_order;
	int64_t checked, longest_write;
	char *buffer;
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1, .checked = -1};

static uint64_t sum_of(const struct record *record)
{
	const uint64_t *word = (const uint64_t *)record;
	uint64_t sum = 0;

	for (size_t i = 0; i < RECORD / 8 - 1; i++)
		sum = mix(sum ^ word[i]);
	return sum;
}

static bool is_sound(const struct record *record)
{
	return record->magic == RECORD_MAGIC && record->sum == sum_of(record);
}

/* Calls visit for the records in slots [0, count) until it returns false; false if the disk could not be read. */
static bool each_record(uint64_t count, bool (*visit)(const struct record *, uint64_t slot))
{
	for (uint64_t slot = 0; slot < count; slot += CHUNK / RECORD) {
		ssize_t got = pread(disk.fd, disk.buffer, CHUNK, slot * RECORD);

		if (got <= 0)
			return false;
		for (uint64_t i = 0; i < (uint64_t)got / RECORD && slot + i < count; i++)
			if (!visit((const struct record *)disk.buffer + i, slot + i))
				return true;
	}
	return true;
}

/* A log goes on where the boot before left it. Numbers start at 1: slot 0 stays empty until the first lap is full. */
static bool find_last(const struct record *record, uint64_t slot)
{
	if (!is_sound(record))
		return slot == 0;
	if (record->number < disk.last)
		return false;
	disk.last = record->number;
	return true;
}

/* Record number n lies in slot n % slots, so the number that a slot must hold follows from the last one. */
static bool compare(const struct record *record, uint64_t slot)
{
	uint64_t lap = disk.last - disk.last % disk.slots, number = lap + slot;

	if (number > disk.last)
		number -= disk.slots;
	if (!number)
		return true;
	disk.checked++;
	if (!is_sound(record))
		disk.damaged++;
	else if (record->number != number)
		disk.out_of_order++;
	return true;
}

static void check_disk(void)
{
	if (disk.fd < 0)
		return;
	pthread_mutex_lock(&disk.lock);
	disk.checked = disk.damaged = disk.out_of_order = 0;
	if (!each_record(disk.last < disk.slots ? disk.last + 1 : disk.slots, compare))
		disk.io_errors++;
	pthread_mutex_unlock(&disk.lock);
}

static void write_record(struct record *record)
{
	int64_t began;

	pthread_mutex_lock(&disk.lock);
	*record = (struct record){.magic = RECORD_MAGIC, .number = disk.last + 1, .wall = now(CLOCK_REALTIME)};
	memcpy(record->boot_id, boot_id, sizeof(boot_id));
	record->sum = sum_of(record);
	began = now(CLOCK_MONOTONIC);
	if (pwrite(disk.fd, record, RECORD, record->number % disk.slots * RECORD) == RECORD)
		disk.last++;
	else
		disk.io_errors++;
	if (now(CLOCK_MONOTONIC) - began > disk.longest_write)
		disk.longest_write = now(CLOCK_MONOTONIC) - began;
	pthread_mutex_unlock(&disk.lock);
}

static bool open_disk(void)
{
	uint64_t size = 0;

	disk.fd = open(DISK_PATH, O_RDWR | O_DIRECT | O_DSYNC);
	if (disk.fd < 0)
		return false;
	if (ioctl(disk.fd, BLKGETSIZE64, &size) || posix_memalign((void **)&disk.buffer, PAGE, CHUNK))
		return false;
	disk.slots = size / RECORD;
	return each_record(disk.slots, find_last);
}

static void *log_to_disk(void *unused)
{
	struct record *record;
	int64_t when = now(CLOCK_MONOTONIC);

	(void)unused;
	if (posix_memalign((void **)&record, PAGE, PAGE))
		return NULL;
	for (;;) {
		when = beat(when, RECORD_EVERY);
		write_record(record);
	}
	return NULL;
}

/* ---- TCP: one connection for the life of the guest -------------------------------------------------------- */

static struct {
	_Atomic uint64_t connects, sent, acked, wrong;
	_Atomic int64_t longest;
	_Atomic bool connected;
} tcp;

static int connect_to_peer(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(ECHO_PORT), .sin_addr = peer};
	int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;

	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		close(fd);
		return -1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
	return fd;
}

/* Takes the echoes that have arrived. False once the connection is gone. */
static bool take_echoes(int fd, uint64_t *expected)
{
	static char line[64];
	static size_t length;
	struct pollfd ready = {.fd = fd, .events = POLLIN};
	char byte;

	while (poll(&ready, 1, 0) > 0) {
		if (recv(fd, &byte, 1, 0) != 1)
			return false;
		if (byte != '\n') {
			if (length < sizeof(line) - 1)
				line[length++] = byte;
			continue;
		}
		line[length] = 0;
		length = 0;
		if (strtoull(line, NULL, 10) == *expected)
			tcp.acked++;
		else
			tcp.wrong++;
		(*expected)++;
	}
	return true;
}

static void converse(int fd)
{
	uint64_t expected = tcp.sent + 1;
	int64_t when = now(CLOCK_MONOTONIC), answered = when;
	char line[32];

	for (;;) {
		uint64_t before = expected;
		int n = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)++tcp.sent);

		if (send(fd, line, n, MSG_NOSIGNAL) != n)
			return;
		when = beat(when, LINE_EVERY);
		if (!take_echoes(fd, &expected))
			return;
		if (now(CLOCK_MONOTONIC) - answered > tcp.longest)
			tcp.longest = now(CLOCK_MONOTONIC) - answered;
		if (expected != before)
			answered = now(CLOCK_MONOTONIC);
	}
}

static void *talk(void *unused)
{
	(void)unused;
	for (;;) {
		int fd = connect_to_peer();

		if (fd < 0) {
			usleep(200000);
			continue;
		}
		tcp.connects++;
		tcp.connected = true;
		converse(fd);
		tcp.connected = false;
		close(fd);
	}
	return NULL;
}

/* ---- serial console --------------------------------------------------------------------------------------- */

static _Atomic uint64_t console_lines;

static void *count_on_console(void *unused)
{
	int64_t when = now(CLOCK_MONOTONIC);
	int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);

	(void)unused;
	for (;;) {
		when = beat(when, CONSOLE_EVERY);
		if (dprintf(fd, "tick %llu\n", (unsigned long long)console_lines + 1) > 0)
			console_lines++;
	}
	return NULL;
}

/* ---- reporting -------------------------------------------------------------------------------------------- */

static int64_t rtc_seconds(void)
{
	struct rtc_time rtc = {0};
	int fd = open("/dev/rtc0", O_RDONLY), failed;

	if (fd < 0)
		return -1;
	failed = ioctl(fd, RTC_RD_TIME, &rtc);
	close(fd);
	if (failed)
		return -1;
	return timegm(&(struct tm){.tm_sec = rtc.tm_sec, .tm_min = rtc.tm_min, .tm_hour = rtc.tm_hour,
				   .tm_mday = rtc.tm_mday, .tm_mon = rtc.tm_mon, .tm_year = rtc.tm_year});
}

static void say_report(FILE *out)
{
	fprintf(out, "{\"boot_id\":\"%s\",\"boottime_ns\":%lld,\"monotonic_ns\":%lld,\"wall_ns\":%lld,\"rtc_s\":%lld,"
		     "\"tsc\":%llu", boot_id, (long long)now(CLOCK_BOOTTIME), (long long)now(CLOCK_MONOTONIC),
		(long long)now(CLOCK_REALTIME), (long long)rtc_seconds(), (unsigned long long)__rdtsc());
	pthread_mutex_lock(&ticks.lock);
	fprintf(out, ",\"ticks\":{\"count\":%lld,\"longest_ns\":%lld,\"longest_at_ns\":%lld,\"p99_ns\":%lld,"
		     "\"wall_step_ns\":%lld}", (long long)ticks.count, (long long)ticks.longest,
		(long long)ticks.longest_at, (long long)percentile(99), (long long)ticks.wall_step);
	pthread_mutex_unlock(&ticks.lock);
	fprintf(out, ",\"ram\":{\"pages\":%llu,\"seed\":%llu,\"checked\":%lld,\"bad\":%llu,\"first_bad\":%lld,"
		     "\"rewritten\":%llu}",
		(unsigned long long)ram.pages, (unsigned long long)ram.seed, (long long)ram.checked,
		(unsigned long long)ram.bad, (long long)ram.first_bad, (unsigned long long)ram.rewritten);
	fprintf(out, ",\"disk\":{\"present\":%s,\"last\":%llu,\"io_errors\":%llu,\"longest_write_ns\":%lld,"
		     "\"checked\":%lld,\"damaged\":%llu,\"out_of_order\":%llu}", disk.fd < 0 ? "false" : "true",
		(unsigned long long)disk.last, (unsigned long long)disk.io_errors, (long long)disk.longest_write,
		(long long)disk.checked, (unsigned long long)disk.damaged, (unsigned long long)disk.out_of_order);
	fprintf(out, ",\"tcp\":{\"present\":%s,\"connected\":%s,\"connects\":%llu,\"sent\":%llu,\"acked\":%llu,"
		     "\"wrong\":%llu,\"longest_ns\":%lld}", peer.s_addr ? "true" : "false",
		tcp.connected ? "true" : "false", (unsigned long long)tcp.connects, (unsigned long long)tcp.sent,
		(unsigned long long)tcp.acked, (unsigned long long)tcp.wrong, (long long)tcp.longest);
	fprintf(out, ",\"console_lines\":%llu}\n", (unsigned long long)console_lines);
}

static void obey(char *command, FILE *out)
{
	unsigned long long mib, seed;

	if (sscanf(command, "fill %llu %llu", &mib, &seed) == 2) {
		pthread_mutex_lock(&ram.lock);
		bool filled = fill(mib, seed);
		pthread_mutex_unlock(&ram.lock);

		if (!filled) {
			fprintf(out, "{\"error\":\"no room for %llu MiB\"}\n", mib);
			return;
		}
	} else if (sscanf(command, "rewrite %llu", &mib) == 1) {
		ram.per_beat = (mib << 20) / PAGE * TICK_EVERY / (1000 * MS);
	} else if (!strcmp(command, "check")) {
		pthread_mutex_lock(&ram.lock);
		check_ram();
		pthread_mutex_unlock(&ram.lock);
		check_disk();
	} else if (!strcmp(command, "reset-ticks")) {
		reset_ticks();
	} else if (strcmp(command, "report")) {
		fprintf(out, "{\"error\":\"expected report, check, fill MIB SEED, rewrite MIB or reset-ticks\"}\n");
		return;
	}
	say_report(out);
}

static const struct sockaddr_un here = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};

static void serve(void)
{
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	unlink(SOCKET_PATH);
	if (bind(listener, (const struct sockaddr *)&here, sizeof(here)) || listen(listener, 8)) {
		perror("proof: " SOCKET_PATH);
		exit(1);
	}
	for (;;) {
		char command[128] = "";
		int fd = accept(listener, NULL, NULL);
		FILE *stream = fd < 0 ? NULL : fdopen(fd, "r+");

		if (!stream)
			continue;
		if (fgets(command, sizeof(command), stream)) {
			command[strcspn(command, "\n")] = 0;
			obey(command, stream);
		}
		fclose(stream);
	}
}

static int ask(int argc, char **argv)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	bool said = false;
	char buffer[4096];
	ssize_t n;

	if (connect(fd, (const struct sockaddr *)&here, sizeof(here))) {
		perror("proof: " SOCKET_PATH);
		return 1;
	}
	for (int i = 1; i < argc; i++)
		dprintf(fd, "%s%c", argv[i], i + 1 < argc ? ' ' : '\n');
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		if (write(STDOUT_FILENO, buffer, n) == n)
			said = true;
		else
			return 1;
	if (!said)
		fprintf(stderr, "proof: the one that was asked ended without an answer\n");
	return !said;
}

/* ---- start ------------------------------------------------------------------------------------------------ */

static void start(void *(*loop)(void *))
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, loop, NULL))
		exit(1);
	pthread_detach(thread);
}

static void read_line(const char *path, char *into, size_t size)
{
	FILE *file = fopen(path, "r");

	if (!file || !fgets(into, size, file))
		into[0] = 0;
	into[strcspn(into, "\n")] = 0;
	if (file)
		fclose(file);
}

static const char *setting(const char *cmdline, const char *name)
{
	const char *found = strstr(cmdline, name);

	return found ? found + strlen(name) : NULL;
}

int main(int argc, char **argv)
{
	char cmdline[4096], address[64] = "";
	const char *mib, *seed, *to;

	if (argc < 2) {
		fprintf(stderr, "usage: proof run|report|check|fill MIB SEED|rewrite MIB|reset-ticks\n");
		return 2;
	}
	if (strcmp(argv[1], "run"))
		return ask(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	read_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id));
	read_line("/proc/cmdline", cmdline, sizeof(cmdline));
	if (setting(cmdline, "proof.pace="))
		pace = strtoll(setting(cmdline, "proof.pace="), NULL, 10);
	mib = setting(cmdline, "proof.fill=");
	seed = setting(cmdline, "proof.seed=");
	to = setting(cmdline, "proof.peer=");
	if (to && !access("/sys/class/net/eth0", F_OK) && sscanf(to, "%63s", address) == 1)
		inet_aton(address, &peer);
	if (mib && !fill(strtoull(mib, NULL, 10), seed ? strtoull(seed, NULL, 10) : 0))
		fprintf(stderr, "proof: no room for the RAM asked for\n");
	start(tick);
	start(rewrite);
	start(count_on_console);
	if (open_disk())
		start(log_to_disk);
	if (peer.s_addr)
		start(talk);
	serve();
}
