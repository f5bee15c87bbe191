// Owners of descriptors, bags of them, and the words of errors.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct OwnedFDTests {
  @Test("A descriptor is closed when its owner goes, and stays open when it was released")
  func ownership() throws {
    let (open, leaked) = try withOwnDescriptors {
      var kept: Int32 = -1
      do {
        let dropped = try memoryFile()
        let released = try memoryFile()
        guard isOpen(dropped.raw), isOpen(released.raw) else { throw Unexpected("not open at first") }
        kept = released.release()
      }
      return openDescriptors() == [kept]
    }
    #expect(open)
    #expect(leaked.count == 1)
  }

  @Test("A duplicate is the same file under another number, and is closed on exec")
  func duplicates() throws {
    let file = try memoryFile()
    let copy = try file.duplicate()
    #expect(copy.raw != file.raw)
    #expect(inode(of: copy.raw) == inode(of: file.raw))
    #expect(isCloseOnExec(copy.raw))
  }

  @Test("Duplicating with a full table of descriptors is EMFILE")
  func fullTable() throws {
    let (error, leaked) = try withOwnDescriptors { () -> HostError? in
      let file = try memoryFile()
      let taken = try exhaustDescriptors()
      defer { for raw in taken { close(raw) } }
      do throws(HostError) { _ = try file.duplicate() } catch { return error }
      return nil
    }
    #expect(error?.code == EMFILE)
    #expect(leaked == [])
  }

  @Test("A bag hands its descriptors out in order and closes those that nobody took")
  func bag() throws {
    let (inOrder, leaked) = try withOwnDescriptors {
      var bag = DescriptorBag()
      var numbers: [Int32] = []
      for _ in 0..<5 {
        let file = try memoryFile()
        numbers.append(file.raw)
        bag.add(file)
      }
      guard bag.count == 5 else { return false }
      var taken: [Int32] = []
      while bag.count > 2, let file = bag.takeFirst() { taken.append(file.raw) }
      return taken == Array(numbers.prefix(3)) && bag.count == 2
    }
    #expect(inOrder)
    #expect(leaked == [])
  }

  @Test("An emptied bag has nothing to take")
  func emptyBag() throws {
    let (empty, leaked) = try withOwnDescriptors {
      var bag = DescriptorBag()
      bag.add(try memoryFile())
      bag.removeAll()
      let open = openDescriptors()
      switch bag.takeFirst() {
      case nil: return bag.count == 0 && open.isEmpty
      case .some: return false
      }
    }
    #expect(empty)
    #expect(leaked == [])
  }

  @Test("An error says the call and the system's words for its number")
  func sentences() {
    #expect(HostError.system(call: "mmap", code: ENOMEM).description == "mmap: Cannot allocate memory")
    #expect(HostError.text(of: 99999).contains("99999"))
    #expect(HostError.system(call: "mmap", code: ENOMEM).code == ENOMEM)
    #expect(HostError.pathInUse(path: "/x").code == nil)
    #expect(HostError.pathTooLong(path: "/tmp/x", limit: 5).description.contains("6 bytes, at most 5"))
    #expect(HostError.processorsUnavailable([7, 9]).description.contains("7, 9"))
  }
}
