// Mapped memory and what a descriptor refers to.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct MappingTests {
  /// The part of /proc/self/smaps that speaks of a memfd of this name.
  private func entry(of name: String) -> [Substring] {
    // In a loop of our own: such a file ends with an empty read, not with a short one.
    let file = OwnedFD(adopting: open("/proc/self/smaps", O_RDONLY | O_CLOEXEC))
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while case let count = read(file.raw, &piece, piece.count), count > 0 { bytes += piece[..<count] }
    let all = String(decoding: bytes, as: UTF8.self)
    let lines = all.split(separator: "\n")
    guard let first = lines.firstIndex(where: { $0.contains("/memfd:\(name) ") }) else { return [] }
    let rest = lines[(first + 1)...]
    return [lines[first]] + rest.prefix { !$0.contains("-") || $0.contains(": ") }
  }

  @Test("Two mappings of a file share its bytes, from the offset asked for")
  func shared() throws {
    let file = try memoryFile(bytes: 16384)
    let whole = try Mapping(file: file, offset: 0, length: 16384)
    let part = try Mapping(file: file, offset: 8192, length: 4096)
    part.base.storeBytes(of: 0x1234_5678, as: UInt32.self)
    #expect(whole.base.load(fromByteOffset: 8192, as: UInt32.self) == 0x1234_5678)
    whole.base.storeBytes(of: 9, toByteOffset: 8192 + 4095, as: UInt8.self)
    #expect(part.base.load(fromByteOffset: 4095, as: UInt8.self) == 9)
  }

  @Test("A mapping outlives its descriptor and is gone with its last reference")
  func lifetime() throws {
    let name = "life-\(UInt64.random(in: 0 ... .max))"
    var mapping: Mapping? = try Mapping(file: try memoryFile(name), offset: 0, length: 4096)
    mapping?.base.storeBytes(of: 1, as: UInt8.self)
    #expect(!entry(of: name).isEmpty)
    mapping = nil
    #expect(entry(of: name).isEmpty)
  }

  @Test("A length is rounded up to whole pages, huge ones where the file has those")
  func rounding() throws {
    let small = try Mapping(file: try memoryFile(), offset: 0, length: 1)
    #expect(small.length == 4096)
    let name = "huge-\(UInt64.random(in: 0 ... .max))"
    do {
      // Huge pages that nobody touches need not be there.
      let file = try memoryFile(name, bytes: 4 << 20, flags: CLX_MFD_CLOEXEC | CLX_MFD_HUGETLB)
      let facts = try FileFacts(of: file)
      #expect(facts.isHuge)
      #expect(facts.pageSize == 2 << 20)
      let huge = try Mapping(file: file, offset: 2 << 20, length: 4096, pageSize: facts.pageSize)
      #expect(huge.length == 2 << 20)
      #expect(!entry(of: name).isEmpty)
    }
    #expect(entry(of: name).isEmpty)
  }

  @Test("Memory of our own is zeroed, writable and nobody else's")
  func anonymous() throws {
    let mapping = try Mapping(anonymous: 10_000)
    #expect(mapping.length == 12288)
    #expect(UnsafeRawBufferPointer(start: mapping.base, count: mapping.length).allSatisfy { $0 == 0 })
    mapping.base.storeBytes(of: 7, toByteOffset: 12287, as: UInt8.self)
  }

  @Test("What is kept out of core dumps is marked so")
  func coreDumps() throws {
    let name = "dump-\(UInt64.random(in: 0 ... .max))"
    let mapping = try Mapping(file: try memoryFile(name), offset: 0, length: 4096)
    let flags = { entry(of: name).first { $0.hasPrefix("VmFlags:") }?.split(separator: " ") ?? [] }
    try #require(!flags().isEmpty)
    #expect(!flags().contains("dd"))
    #expect(mapping.excludeFromCoreDumps())
    #expect(flags().contains("dd"))
    // Without MAP_NORESERVE ("nr") a guest of terabytes would have to fit into the swap.
    #expect(flags().contains("nr"))
  }

  @Test(
    "Numbers that make no mapping are refused",
    arguments: [
      (UInt64(0), 0, 4096), (0, -1, 4096), (0, .max, 4096), (.max, 4096, 4096), (1, 4096, 4096),
      (UInt64(Int64.max) - 4095, 8192, 4096), (0, 4096, 0), (0, 4096, -4096), (0, 4096, 3), (0, 4096, .min),
    ] as [(UInt64, Int, Int)])
  func refused(offset: UInt64, length: Int, pageSize: Int) throws {
    let file = try memoryFile()
    do {
      _ = try Mapping(file: file, offset: offset, length: length, pageSize: pageSize)
      Issue.record("mapped")
    } catch {
      #expect([EINVAL, EOVERFLOW, ENOMEM].contains(error.code))
    }
  }

  @Test("A file that may not be written is refused: opened for reading, or sealed")
  func readOnly() throws {
    let folder = try TemporaryFolder()
    try Data(count: 4096).write(to: URL(fileURLWithPath: folder.file("disk")))
    let reader = OwnedFD(adopting: open(folder.file("disk"), O_RDONLY | O_CLOEXEC))
    let error = mapError(reader)
    #expect(error == .system(call: "mmap", code: EACCES))

    for seal in [CLX_F_SEAL_WRITE, CLX_F_SEAL_FUTURE_WRITE].map(Int.init) {
      let sealed = try memoryFile(flags: CLX_MFD_CLOEXEC | CLX_MFD_ALLOW_SEALING)
      try #require(clx_fcntl_int(sealed.raw, Int32(CLX_F_ADD_SEALS), seal) == 0)
      let error = mapError(sealed)
      #expect(error == .system(call: "mmap", code: EPERM))
    }
  }

  @Test("What has no pages is refused")
  func pageless() throws {
    let event = OwnedFD(adopting: eventfd(0, 0))
    let closed = OwnedFD(adopting: -1)
    let errors = [mapError(event), mapError(closed)]
    #expect(errors == [.system(call: "mmap", code: ENODEV), .system(call: "mmap", code: EBADF)])
  }

  private func mapError(_ file: borrowing OwnedFD) -> HostError? {
    do { _ = try Mapping(file: file, offset: 0, length: 4096) } catch { return error }
    return nil
  }
}

@Suite struct FileFactsTests {
  @Test("A memfd is a regular file of its size on tmpfs")
  func memory() throws {
    let facts = try FileFacts(of: try memoryFile(bytes: 12345))
    #expect(facts.kind == .regular)
    #expect(facts.size == 12345)
    #expect(facts.isTmpfs)
    #expect(!facts.isHuge)
    #expect(facts.pageSize == sysconf(Int32(_SC_PAGESIZE)))
  }

  @Test("Each kind of file is told")
  func kinds() throws {
    func kind(_ raw: Int32) throws -> FileFacts.Kind {
      let descriptor = OwnedFD(adopting: raw)
      return try FileFacts(of: descriptor).kind
    }
    #expect(try kind(open("/tmp", O_RDONLY)) == .directory)
    #expect(try kind(open("/dev/null", O_RDONLY)) == .character)
    #expect(try kind(socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)) == .socket)
    #expect(try kind(eventfd(0, 0)) == .other)
    var ends: [Int32] = [-1, -1]
    #expect(pipe(&ends) == 0)
    #expect(try kind(ends[0]) == .pipe)
    #expect(try kind(ends[1]) == .pipe)
    let folder = try TemporaryFolder()
    #expect(symlink("nowhere", folder.file("link")) == 0)
    #expect(try kind(clx_open(folder.file("link"), clx_O_PATH | O_NOFOLLOW, 0)) == .link)
  }

  @Test(
    "A file on disk is not on tmpfs", .enabled(if: FileManager.default.fileExists(atPath: "/proc/self/stat")))
  func elsewhere() throws {
    let file = OwnedFD(adopting: open("/proc/self/stat", O_RDONLY | O_CLOEXEC))
    let facts = try FileFacts(of: file)
    #expect(!facts.isTmpfs)
  }

  @Test("A closed descriptor is EBADF")
  func closed() {
    #expect(throws: HostError.system(call: "fstat", code: EBADF)) { try FileFacts(of: -1) }
  }
}
