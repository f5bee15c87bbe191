// Files that are cut off under a mapping: the touch that would have ended the process reads zeros, and is counted.

import CLinux
import Foundation
import HostIO
import Testing

@Suite("Memory that is taken away")
struct LostMemoryTests {
  @Test(
    "What was cut off reads zeros and counts each page once; the rest and other mappings stay as they were")
  func cutOff() throws {
    let file = try memoryFile(bytes: 4 * 4096)
    let mapping = try Mapping(file: file, offset: 0, length: 4 * 4096)
    let other = try Mapping(file: try memoryFile(), offset: 0, length: 4096)
    for page in 0..<4 {
      mapping.base.storeBytes(of: UInt8(page + 1), toByteOffset: page * 4096, as: UInt8.self)
    }
    #expect(ftruncate(file.raw, 4096) == 0)
    let (before, here) = (clx_shared_lost(), clx_shared_lost_here())
    #expect(clx_load_relaxed_u8(mapping.base + 4096) == 0)
    #expect(mapping.lostPages == 1)
    // A lost page is ordinary memory from then on.
    clx_store_relaxed_u64(mapping.base + 4096 + 8, 77)
    #expect(clx_load_relaxed_u64(mapping.base + 4096 + 8) == 77)
    clx_store_relaxed_u8(mapping.base + 3 * 4096 + 4095, 1)
    #expect(mapping.lostPages == 2)
    #expect(clx_load_relaxed_u8(mapping.base) == 1)
    #expect(other.lostPages == 0)
    #expect(clx_shared_lost_here() == here + 2)
    #expect(clx_shared_lost() >= before + 2)
  }

  @Test("Pages past the end of a file from the beginning are lost ones, and a short last page is none")
  func pastTheEnd() throws {
    let file = try memoryFile(bytes: 100)
    let mapping = try Mapping(file: file, offset: 0, length: 8192)
    #expect(clx_load_relaxed_u8(mapping.base + 4000) == 0)
    #expect(mapping.lostPages == 0)
    #expect(clx_load_relaxed_u8(mapping.base + 4096) == 0)
    #expect(mapping.lostPages == 1)
  }

  @Test("Of huge pages a whole one is replaced")
  func huge() throws {
    let file = try memoryFile(bytes: 4 << 20, flags: CLX_MFD_CLOEXEC | CLX_MFD_HUGETLB)
    let size = try FileFacts(of: file).pageSize
    let mapping = try Mapping(file: file, offset: 0, length: 4 << 20, pageSize: size)
    #expect(ftruncate(file.raw, 0) == 0)
    // From its middle, as a fault mostly comes.
    clx_store_relaxed_u8(mapping.base + size + size / 2 + 5, 9)
    #expect(mapping.lostPages == 1)
    #expect(clx_load_relaxed_u8(mapping.base + size + size / 2 + 5) == 9)
    #expect(clx_load_relaxed_u8(mapping.base + 2 * size - 1) == 0)
    #expect(clx_load_relaxed_u8(mapping.base) == 0)
    #expect(mapping.lostPages == 2)
  }

  @Test("Any number of mappings may come and go, and threads may lose pages at the same time")
  func many() async throws {
    let file = try memoryFile(bytes: 4096)
    var mappings: [Mapping] = []
    for _ in 0..<700 { mappings.append(try Mapping(file: file, offset: 0, length: 4096)) }
    mappings.removeSubrange(100..<600)
    for _ in 0..<300 { mappings.append(try Mapping(file: file, offset: 0, length: 4096)) }
    #expect(ftruncate(file.raw, 0) == 0)
    let (count, all) = (mappings.count, mappings)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for thread in 0..<4 {
        group.addTask {
          try onThread {
            for i in stride(from: thread, to: count, by: 4) where clx_load_relaxed_u8(all[i].base) != 0 {
              throw Unexpected("mapping \(i)")
            }
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(mappings.allSatisfy { $0.lostPages == 1 })
  }

  @Test("A fault that is none of ours ends the process")
  func elsewhere() async {
    await #expect(processExitsWith: .signal(SIGBUS)) {
      signal(SIGBUS, SIG_DFL)
      let file = try memoryFile(bytes: 4096)
      let mapping = try Mapping(file: file, offset: 0, length: 4096)
      let foreign = mmap(nil, 4096, PROT_READ, MAP_SHARED, file.raw, 0)
      ftruncate(file.raw, 0)
      // Ours is survived, the other one is not.
      guard clx_load_relaxed_u8(mapping.base) == 0, mapping.lostPages == 1 else { exit(1) }
      _ = clx_load_relaxed_u8(foreign)
      exit(2)
    }
  }

  @Test("The signal itself, sent by somebody, does what it always did")
  func sent() async {
    await #expect(processExitsWith: .signal(SIGBUS)) {
      signal(SIGBUS, SIG_DFL)
      let mapping = try Mapping(file: try memoryFile(), offset: 0, length: 4096)
      kill(getpid(), SIGBUS)
      _ = Poll.one(-1, .readable, milliseconds: 5000)
      exit(Int32(mapping.lostPages))
    }
  }
}
