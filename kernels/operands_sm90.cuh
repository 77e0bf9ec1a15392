/* Operand lists of asm statements over an accumulator block d[n / 8][4] of n columns, 8 <= n <=
 * 256: REGISTERS_n names its operands as they stand in the text, from %6 on; SUMS_n(d) binds them.
 * */
#ifndef OPERANDS_SM90_CUH
#define OPERANDS_SM90_CUH

#define SUM(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])

#define REGISTERS_8 "%6, %7, %8, %9"
#define REGISTERS_16 REGISTERS_8 ", %10, %11, %12, %13"
#define REGISTERS_24 REGISTERS_16 ", %14, %15, %16, %17"
#define REGISTERS_32 REGISTERS_24 ", %18, %19, %20, %21"
#define REGISTERS_40 REGISTERS_32 ", %22, %23, %24, %25"
#define REGISTERS_48 REGISTERS_40 ", %26, %27, %28, %29"
#define REGISTERS_56 REGISTERS_48 ", %30, %31, %32, %33"
#define REGISTERS_64 REGISTERS_56 ", %34, %35, %36, %37"
#define REGISTERS_72 REGISTERS_64 ", %38, %39, %40, %41"
#define REGISTERS_80 REGISTERS_72 ", %42, %43, %44, %45"
#define REGISTERS_88 REGISTERS_80 ", %46, %47, %48, %49"
#define REGISTERS_96 REGISTERS_88 ", %50, %51, %52, %53"
#define REGISTERS_104 REGISTERS_96 ", %54, %55, %56, %57"
#define REGISTERS_112 REGISTERS_104 ", %58, %59, %60, %61"
#define REGISTERS_120 REGISTERS_112 ", %62, %63, %64, %65"
#define REGISTERS_128 REGISTERS_120 ", %66, %67, %68, %69"
#define REGISTERS_136 REGISTERS_128 ", %70, %71, %72, %73"
#define REGISTERS_144 REGISTERS_136 ", %74, %75, %76, %77"
#define REGISTERS_152 REGISTERS_144 ", %78, %79, %80, %81"
#define REGISTERS_160 REGISTERS_152 ", %82, %83, %84, %85"
#define REGISTERS_168 REGISTERS_160 ", %86, %87, %88, %89"
#define REGISTERS_176 REGISTERS_168 ", %90, %91, %92, %93"
#define REGISTERS_184 REGISTERS_176 ", %94, %95, %96, %97"
#define REGISTERS_192 REGISTERS_184 ", %98, %99, %100, %101"
#define REGISTERS_200 REGISTERS_192 ", %102, %103, %104, %105"
#define REGISTERS_208 REGISTERS_200 ", %106, %107, %108, %109"
#define REGISTERS_216 REGISTERS_208 ", %110, %111, %112, %113"
#define REGISTERS_224 REGISTERS_216 ", %114, %115, %116, %117"
#define REGISTERS_232 REGISTERS_224 ", %118, %119, %120, %121"
#define REGISTERS_240 REGISTERS_232 ", %122, %123, %124, %125"
#define REGISTERS_248 REGISTERS_240 ", %126, %127, %128, %129"
#define REGISTERS_256 REGISTERS_248 ", %130, %131, %132, %133"

#define SUMS_8(d) SUM(d, 0)
#define SUMS_16(d) SUMS_8(d), SUM(d, 1)
#define SUMS_24(d) SUMS_16(d), SUM(d, 2)
#define SUMS_32(d) SUMS_24(d), SUM(d, 3)
#define SUMS_40(d) SUMS_32(d), SUM(d, 4)
#define SUMS_48(d) SUMS_40(d), SUM(d, 5)
#define SUMS_56(d) SUMS_48(d), SUM(d, 6)
#define SUMS_64(d) SUMS_56(d), SUM(d, 7)
#define SUMS_72(d) SUMS_64(d), SUM(d, 8)
#define SUMS_80(d) SUMS_72(d), SUM(d, 9)
#define SUMS_88(d) SUMS_80(d), SUM(d, 10)
#define SUMS_96(d) SUMS_88(d), SUM(d, 11)
#define SUMS_104(d) SUMS_96(d), SUM(d, 12)
#define SUMS_112(d) SUMS_104(d), SUM(d, 13)
#define SUMS_120(d) SUMS_112(d), SUM(d, 14)
#define SUMS_128(d) SUMS_120(d), SUM(d, 15)
#define SUMS_136(d) SUMS_128(d), SUM(d, 16)
#define SUMS_144(d) SUMS_136(d), SUM(d, 17)
#define SUMS_152(d) SUMS_144(d), SUM(d, 18)
#define SUMS_160(d) SUMS_152(d), SUM(d, 19)
#define SUMS_168(d) SUMS_160(d), SUM(d, 20)
#define SUMS_176(d) SUMS_168(d), SUM(d, 21)
#define SUMS_184(d) SUMS_176(d), SUM(d, 22)
#define SUMS_192(d) SUMS_184(d), SUM(d, 23)
#define SUMS_200(d) SUMS_192(d), SUM(d, 24)
#define SUMS_208(d) SUMS_200(d), SUM(d, 25)
#define SUMS_216(d) SUMS_208(d), SUM(d, 26)
#define SUMS_224(d) SUMS_216(d), SUM(d, 27)
#define SUMS_232(d) SUMS_224(d), SUM(d, 28)
#define SUMS_240(d) SUMS_232(d), SUM(d, 29)
#define SUMS_248(d) SUMS_240(d), SUM(d, 30)
#define SUMS_256(d) SUMS_248(d), SUM(d, 31)

#endif
